"""Ways to move the balance bias, by their name in a config. Add one in a file of this package and name it here."""

from moe_jax.moe.bias_updates.bias import BalanceBias, BiasUpdate, updated_bias
from moe_jax.moe.bias_updates.load import by_sign, in_proportion
from moe_jax.moe.bias_updates.longcat import to_shares
from moe_jax.moe.bias_updates.quantile import margins, to_quantile
from moe_jax.moe.sums import choices

__all__ = ["BIAS_UPDATES", "BalanceBias", "BiasUpdate", "updated_bias"]

BIAS_UPDATES: dict[str, BiasUpdate] = {
    "sign": BiasUpdate(choices, by_sign),
    "proportional": BiasUpdate(choices, in_proportion),
    "longcat": BiasUpdate(choices, to_shares, routers=("longcat",)),
    "quantile": BiasUpdate(margins, to_quantile, routers=("sigmoid",)),
}
