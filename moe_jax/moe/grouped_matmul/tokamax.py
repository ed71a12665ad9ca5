"""The kernels of the package tokamax for TPU (Mosaic) and for NVIDIA's Ampere to Blackwell (Mosaic GPU).

On GPU the package asks JAX's first device what it is, so that it cannot compile for a GPU that is not there.
"""

import functools
import importlib

from jax import lax
from jaxtyping import Array, Float, Int

from moe_jax.moe.grouped_matmul.implementation import Implementation
from moe_jax.moe.grouped_matmul.ragged_dot import OVER_ROWS


def _dimensions(contracted: int) -> lax.RaggedDotDimensionNumbers:
    """Rows that are sorted by group, times a dimension of their group's matrix."""
    product = (((1,), (contracted,)), ((), ()))
    return lax.RaggedDotDimensionNumbers(product, lhs_ragged_dimensions=[0], rhs_group_dimensions=[0])


def multiply(
    rows: Float[Array, "M _"],
    weights: Float[Array, "G K N"],
    sizes: Int[Array, "G"],
    transpose: bool,
    kernel: str,
) -> Float[Array, "M _"]:
    """See `Multiply`."""
    return _ragged_dot(rows, weights, sizes, _dimensions(2 if transpose else 1), kernel)


def outer(
    rows: Float[Array, "M K"], grads: Float[Array, "M N"], sizes: Int[Array, "G"], kernel: str
) -> Float[Array, "G K N"]:
    """See `Outer`."""
    return _ragged_dot(rows, grads, sizes, OVER_ROWS, kernel)


def _ragged_dot(a: Array, b: Array, sizes: Array, dimensions: lax.RaggedDotDimensionNumbers, kernel: str) -> Array:
    package = importlib.import_module("tokamax")
    return package.ragged_dot_general(a, b, sizes, dimensions, implementation=kernel)


def _of(kernel: str, platform: str, dtypes: tuple[str, ...]) -> Implementation:
    with_kernel = functools.partial(multiply, kernel=kernel), functools.partial(outer, kernel=kernel)
    return Implementation(with_kernel[0], with_kernel[1], platform=platform, package="tokamax", dtypes=dtypes)


TOKAMAX_TPU = _of("mosaic_tpu", "tpu", ("float32", "bfloat16"))
TOKAMAX_GPU = _of("mosaic_gpu", "gpu", ("bfloat16",))
