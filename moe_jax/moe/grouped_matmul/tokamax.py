"""The kernels of the package tokamax for TPU (Mosaic) and for NVIDIA's Ampere to Blackwell (Mosaic GPU)."""

import functools
import importlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from moe_jax.moe.grouped_matmul.implementation import Implementation


def multiply(
    rows: Float[Array, "M _"],
    weights: Float[Array, "G K N"],
    sizes: Int[Array, "G"],
    transpose: bool,
    kernel: str,
) -> Float[Array, "M _"]:
    """See `Multiply`; the product with transposes is the package's own gradient of rows."""
    if not transpose:
        return _ragged_dot(rows, weights, sizes, kernel)
    blank = jnp.zeros((rows.shape[0], weights.shape[1]), rows.dtype)
    return jax.vjp(lambda x: _ragged_dot(x, weights, sizes, kernel), blank)[1](rows)[0]


def outer(
    rows: Float[Array, "M K"], grads: Float[Array, "M N"], sizes: Int[Array, "G"], kernel: str
) -> Float[Array, "G K N"]:
    """See `Outer`."""
    blank = jnp.zeros((sizes.shape[0], rows.shape[1], grads.shape[1]), rows.dtype)
    return jax.vjp(lambda w: _ragged_dot(rows, w, sizes, kernel), blank)[1](grads)[0]


def _ragged_dot(rows: Array, weights: Array, sizes: Array, kernel: str) -> Array:
    package = importlib.import_module("tokamax")
    return package.ragged_dot(rows, weights, group_sizes=sizes, implementation=kernel)


def _of(kernel: str, platform: str) -> Implementation:
    return Implementation(
        functools.partial(multiply, kernel=kernel),
        functools.partial(outer, kernel=kernel),
        platforms=(platform,),
        package="tokamax",
        dtypes=("float32", "bfloat16") if platform == "tpu" else ("bfloat16",),
    )


TOKAMAX_TPU, TOKAMAX_GPU = _of("mosaic_tpu", "tpu"), _of("mosaic_gpu", "gpu")
