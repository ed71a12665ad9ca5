"""Rotary position embedding."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rotate(
    x: Float[Array, "B L H N"], positions: Int[Array, "L"] | Int[Array, "B L"], theta: float
) -> Float[Array, "B L H N"]:
    """Turns the pair (x[n], x[n + N/2]) by position * theta^(-2n/N) (Su et al. 2021)."""
    size = x.shape[-1]
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    frequency = theta ** (-jnp.arange(0, size, 2, dtype=dtype) / size)
    angle = positions.astype(dtype)[..., None, None] * frequency
    low, high = jnp.split(x.astype(dtype), 2, axis=-1)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1).astype(x.dtype)
