"""Everything that is summed over the tokens of a layer: for measures, for losses, for the balance bias."""

from jaxtyping import Array, Bool

from moe_jax.config.schema import MoEConfig
from moe_jax.moe.bias_updates import BIAS_UPDATES
from moe_jax.moe.losses import active_losses
from moe_jax.moe.measures import MEASURES
from moe_jax.moe.routing import Routing
from moe_jax.moe.sums import Observed, SumOf, Sums, total


def observe(moe: MoEConfig, routing: Routing, kept: Bool[Array, "G T K"], sequences: int) -> Sums:
    """Sums over this device's tokens, the groups of `sequences` sequences."""
    return total(_functions(moe), Observed(routing, kept, sequences))


def _functions(moe: MoEConfig) -> list[SumOf]:
    functions = [function for measure in MEASURES.values() for function in measure.sums]
    functions += [function for loss in active_losses(moe).values() for function in loss.sums(moe)]
    return functions + ([BIAS_UPDATES[moe.bias_update].evidence] if moe.bias_rate else [])
