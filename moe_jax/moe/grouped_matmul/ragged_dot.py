"""JAX's own `ragged_dot`: a kernel of XLA on TPU. On other platforms XLA makes it dense, G times the work."""

from jax import lax
from jaxtyping import Array, Float, Int

from moe_jax.moe.grouped_matmul.implementation import Implementation

OVER_ROWS = lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[])


def multiply(
    rows: Float[Array, "M _"], weights: Float[Array, "G K N"], sizes: Int[Array, "G"], transpose: bool
) -> Float[Array, "M _"]:
    """See `Multiply`."""
    return lax.ragged_dot(rows, weights.swapaxes(1, 2) if transpose else weights, sizes)


def outer(rows: Float[Array, "M K"], grads: Float[Array, "M N"], sizes: Int[Array, "G"]) -> Float[Array, "G K N"]:
    """See `Outer`."""
    return lax.ragged_dot_general(rows, grads, sizes, OVER_ROWS)


RAGGED_DOT = Implementation(multiply, outer, platform="tpu")
