"""The bias moves against the load: it falls for experts that were chosen too often and rises for the others."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_jax.config.schema import MoEConfig


def by_sign(bias: Float[Array, "*M A"], choices: Float[Array, "*M A"], moe: MoEConfig) -> Float[Array, "*M A"]:
    """b_i + u * sign(mean(choices) - choices_i) with u = `moe.bias_rate` (Wang et al. 2024, algorithm 1; DeepSeek-V3,
    section 2.1.2).
    """
    return bias + moe.bias_rate * jnp.sign(jnp.mean(choices, axis=-1, keepdims=True) - choices)


def in_proportion(bias: Float[Array, "*M A"], choices: Float[Array, "*M A"], moe: MoEConfig) -> Float[Array, "*M A"]:
    """b_i + u * (mean(choices) - choices_i) / mean(choices): the variant of Wang et al. 2024, section 4.3, for a batch
    of any size.
    """
    mean = jnp.mean(choices, axis=-1, keepdims=True)
    return bias + moe.bias_rate * (mean - choices) / jnp.where(mean > 0, mean, 1)
