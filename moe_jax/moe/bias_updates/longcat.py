"""LongCat's bias: every expert has its share of the choices, and null experts together the rest."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_jax.config.schema import MoEConfig


def to_shares(bias: Float[Array, "*M A"], choices: Float[Array, "*M A"], moe: MoEConfig) -> Float[Array, "*M A"]:
    """b_i + u * (K_e / (K E) - T_i / (K T)) for each of the E experts, with u = `moe.bias_rate`, T_i the choices of
    expert i among those K T of all tokens, and K_e = `moe.target_experts`; null experts keep theirs (LongCat-Flash,
    section 2.1.2).
    """
    total = jnp.sum(choices, axis=-1, keepdims=True)
    share = moe.target_experts / (moe.top_k * moe.num_experts)
    moved = moe.bias_rate * (share - choices / jnp.maximum(total, 1))
    return bias + jnp.where((total > 0) & (jnp.arange(bias.shape[-1]) < moe.num_experts), moved, 0)
