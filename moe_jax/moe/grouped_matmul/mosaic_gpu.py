"""JAX's Pallas kernels for NVIDIA's Hopper (Mosaic GPU): one for the products, one for the gradient of the matrices."""

import contextlib
import importlib
import types
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
from jaxtyping import Array, Float, Int

from moe_jax.moe.grouped_matmul.implementation import Implementation
from moe_jax.moe.grouped_matmul.tiles import pad

BLOCK, BLOCK_CONTRACTED = 128, 64
HOPPER = r"\bG?H\d+"  # H100, H200, GH200: the kernels are made of Hopper's wgmma
SCHEDULE: dict[str, Any] = {
    "block_m": BLOCK,
    "block_n": BLOCK,
    "block_k": BLOCK_CONTRACTED,
    "max_concurrent_steps": 4,
    "grid_block_n": 1,
}


def multiply(
    rows: Float[Array, "M _"], weights: Float[Array, "G K N"], sizes: Int[Array, "G"], transpose: bool
) -> Float[Array, "M _"]:
    """See `Multiply`."""
    num_rows, columns = rows.shape[0], weights.shape[1 if transpose else 2]
    rows, weights = pad(rows, dim0=BLOCK, dim1=BLOCK), pad(weights, dim1=BLOCK, dim2=BLOCK)
    out = _kernels("ragged_dot_mgpu").ragged_dot(rows, weights, group_sizes=sizes, transpose_rhs=transpose, **SCHEDULE)
    return out[:num_rows, :columns]


def outer(rows: Float[Array, "M K"], grads: Float[Array, "M N"], sizes: Int[Array, "G"]) -> Float[Array, "G K N"]:
    """See `Outer`."""
    size, columns = rows.shape[1], grads.shape[1]
    rows, grads = (pad(a, dim0=BLOCK_CONTRACTED, dim1=BLOCK) for a in (rows, grads))
    kernels = _kernels("transposed_ragged_dot_mgpu")
    with _cores_of_the_target(kernels):
        out = kernels.transposed_ragged_dot(rows, grads, group_sizes=sizes, **SCHEDULE)
    return out[:, :size, :columns]


def _kernels(name: str) -> types.ModuleType:
    """A module of JAX that only those import who have the GPU, or compile for it."""
    return importlib.import_module(f"jax.experimental.pallas.ops.gpu.{name}")


@contextlib.contextmanager
def _cores_of_the_target(kernels: types.ModuleType) -> Iterator[None]:
    """Where the mesh is of GPUs that are not there, the kernel learns from the mesh how many cores they have: left to
    itself it asks this machine's first device.
    """
    target = jax.sharding.get_abstract_mesh().abstract_device
    if hasattr(jax.devices()[0], "core_count") or target is None:
        yield
        return
    device = types.SimpleNamespace(core_count=target.num_cores)
    with mock.patch.object(kernels, "jax", _Shadow(jax, devices=lambda: [device])):
        yield


class _Shadow:
    """A module with some of its names replaced."""

    def __init__(self, module: types.ModuleType, **replaced: Any):
        self._module = module
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


MOSAIC_GPU = Implementation(multiply, outer, platform="gpu", kinds=HOPPER, dtypes=("bfloat16", "float16"))
