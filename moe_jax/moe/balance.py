"""Auxiliary losses that keep routing balanced and its logits small, from global sums."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_jax.moe.stats import RoutingSums


def balance_loss(sums: RoutingSums) -> Float[Array, "*M"]:
    """Load-balancing loss of each layer: E * sum_e f_e P_e (Switch Transformer, equations 4 to 6).

    f_e: the fraction of all choices that went to expert e, before drops; P_e: its mean router probability. The minimum,
    for uniform f and P, is 1. Only P carries a gradient.
    """
    choices = jnp.sum(sums.assigned, axis=-1, keepdims=True)
    f = sums.assigned / jnp.maximum(choices, 1)
    p = sums.probability / jnp.maximum(sums.tokens, 1)[..., None]
    return sums.assigned.shape[-1] * jnp.sum(f * p, axis=-1)


def z_loss(sums: RoutingSums) -> Float[Array, "*M"]:
    """Router z-loss of each layer: the mean over tokens of logsumexp(logits) squared (ST-MoE, equation 5)."""
    return sums.squared_logsumexp / jnp.maximum(sums.tokens, 1)
