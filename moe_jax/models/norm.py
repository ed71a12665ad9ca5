"""Root-mean-square norms (Zhang and Sennrich 2019)."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from moe_jax.parallel.collectives import sum_over, varying
from moe_jax.parallel.mesh import TENSOR
from moe_jax.parallel.sharding import gather, param


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) * scale, in float32."""

    def __init__(self, size: int, eps: float, rngs: nnx.Rngs, dtype: Any):
        self.eps = eps
        self.scale = param(rngs, (size,), (None,), nnx.initializers.ones, dtype)

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Normalises the last dimension."""
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        y = y * lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        return (y * self.scale[...]).astype(x.dtype)


class ProjectionNorm(nnx.Module):
    """An `RMSNorm` of all heads of a projection together, which are cut over the mesh axis `tensor`."""

    def __init__(self, size: int, eps: float, rngs: nnx.Rngs, dtype: Any):
        self.eps, self.size = eps, size
        self.scale = param(rngs, (size,), ("heads",), nnx.initializers.ones, dtype)

    def __call__(self, x: Float[Array, "B L P"]) -> Float[Array, "B L P"]:
        """Normalises this device's part of the projection by the mean square of the whole."""
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        total = varying(sum_over(jnp.sum(jnp.square(y), axis=-1, keepdims=True), [TENSOR]), [TENSOR])
        return (y * lax.rsqrt(total / self.size + self.eps) * gather(self.scale, y.dtype)).astype(x.dtype)
