"""The exchange of expert parallelism: one all-to-all takes expert buffers to their experts, one brings them back."""
from jax import lax
from jaxtyping import Array, Float

from moe_jax.parallel.mesh import EXPERT


def to_experts(buffers: Float[Array, "G E C D"]) -> Float[Array, "_ _ C D"]:
    """From this device's groups and all experts to all the axis's groups and this device's experts."""
    if lax.axis_size(EXPERT) == 1:
        return buffers
    return lax.all_to_all(buffers, EXPERT, split_axis=1, concat_axis=0, tiled=True)


def from_experts(buffers: Float[Array, "_ _ C D"]) -> Float[Array, "G E C D"]:
    """The inverse of `to_experts`."""
    if lax.axis_size(EXPERT) == 1:
        return buffers
    return lax.all_to_all(buffers, EXPERT, split_axis=0, concat_axis=1, tiled=True)
