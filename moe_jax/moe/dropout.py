"""Expert dropout: noise inside the experts' hidden layer, the same on every mesh."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from moe_jax.moe.feed_forward import Weights
from moe_jax.parallel.collectives import all_gather, index_over
from moe_jax.parallel.mesh import EXPERT, TENSOR

DROPOUT = 2**16  # folded into a group's key, which other noise folds small numbers into


def hidden_mask(keys: Key[Array, "G"], rate: float, slots: int, weights: Weights) -> Float[Array, "_ e C f"]:
    """What to multiply the hidden layer with in training: 0 with probability `rate`, otherwise 1 / (1 - rate) (Switch
    Transformer, section 2.4, table 4).

    It covers the groups of all devices along `expert`, in the order in which they arrive, and this device's experts and
    part of F. Every hidden unit draws from a key of its own, which is folded from its group's key, its expert and its
    place in F, so that nothing depends on the mesh. All that it sends is one gather of the groups' keys.
    """
    experts, _, hidden = weights.up.shape
    numbers = all_gather(jax.random.key_data(keys), [EXPERT], 0)
    keys = jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(keys))
    expert = index_over([EXPERT]) * experts + jnp.arange(experts)
    unit = index_over([TENSOR]) * hidden + jnp.arange(hidden)

    def of_unit(key: Key[Array, ""], expert: Array, unit: Array) -> Float[Array, "C"]:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, DROPOUT), expert), unit)
        kept = jax.random.bernoulli(key, 1 - rate, (slots,))
        return kept.astype(weights.up.dtype) / (1 - rate)

    over_units = jax.vmap(of_unit, in_axes=(None, None, 0), out_axes=1)
    over_experts = jax.vmap(over_units, in_axes=(None, 0, None))
    return jax.vmap(over_experts, in_axes=(0, None, None))(keys, expert, unit)
