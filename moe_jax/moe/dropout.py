"""Expert dropout: noise inside the experts' hidden layer, the same on every mesh and with every dispatcher."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt32

from moe_jax.parallel.collectives import index_over
from moe_jax.parallel.mesh import TENSOR

DROPOUT = 2**16  # folded into a group's key, which other noise folds small numbers into


def token_noise(keys: Key[Array, "G"], tokens: int) -> UInt32[Array, "G T w"]:
    """Random numbers of each token (or slot, where tokens are mixed), which travel to its experts with it."""
    number = jnp.arange(tokens)
    of_group = lambda key: jax.vmap(lambda token: jax.random.fold_in(jax.random.fold_in(key, DROPOUT), token))(number)
    return jax.random.key_data(jax.vmap(of_group)(keys))


def hidden_mask(
    noise: UInt32[Array, "*R w"], expert: Int[Array, "*R"], rate: float, hidden: int
) -> Float[Array, "*R f"]:
    """What to multiply rows of the hidden layer with in training: 0 with probability `rate`, otherwise 1 / (1 - rate)
    (Switch Transformer, section 2.4, table 4).

    Every hidden unit draws from a key of its own, which is folded from its token's noise, its expert (of all experts)
    and its place in F, so that nothing depends on the mesh. `hidden` is this device's part of F.
    """
    unit = index_over([TENSOR]) * hidden + jnp.arange(hidden)
    rows = jax.random.wrap_key_data(noise.reshape(-1, noise.shape[-1]))

    def of_unit(key: Key[Array, ""], expert: Array, unit: Array) -> Array:
        return jax.random.bernoulli(jax.random.fold_in(jax.random.fold_in(key, expert), unit), 1 - rate)

    of_row = jax.vmap(of_unit, in_axes=(None, None, 0))
    kept = jax.vmap(of_row, in_axes=(0, 0, None))(rows, expert.reshape(-1), unit)
    return (kept / (1 - rate)).reshape(*expert.shape, hidden)
