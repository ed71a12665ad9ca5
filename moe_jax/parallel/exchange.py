"""The exchange of expert parallelism: one all-to-all takes expert buffers to their experts, one brings them back."""

from jaxtyping import Array, Float

from moe_jax.parallel.collectives import all_to_all
from moe_jax.parallel.mesh import EXPERT


def to_experts(buffers: Float[Array, "G E C D"]) -> Float[Array, "_ _ C D"]:
    """From this device's groups and all experts to all the axis's groups and this device's experts."""
    return all_to_all(buffers, EXPERT, split=1, concat=0)


def from_experts(buffers: Float[Array, "_ _ C D"]) -> Float[Array, "G E C D"]:
    """The inverse of `to_experts`."""
    return all_to_all(buffers, EXPERT, split=0, concat=1)
