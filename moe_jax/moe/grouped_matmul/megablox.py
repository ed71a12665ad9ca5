"""JAX's Pallas kernels for TPU: `gmm` for the products and `tgmm` for the gradient of the matrices."""

import functools
import importlib
import types

from jaxtyping import Array, Float, Int

from moe_jax.moe.grouped_matmul.implementation import Implementation
from moe_jax.moe.grouped_matmul.tiles import largest_tile, pad, padded_size

LANES = 128
ROWS = (512, 256, 128)  # of a tile, in falling order: at most the mean rows of a group
COLUMNS = (1024, 512, 256, LANES)  # the kernel is wrong where its tile does not divide the contracted size


def _kernels() -> types.ModuleType:
    """The module, of which only those who use it pay the import; its package has a function of its name too."""
    return importlib.import_module("jax.experimental.pallas.ops.tpu.megablox.gmm")


def multiply(
    rows: Float[Array, "M _"],
    weights: Float[Array, "G K N"],
    sizes: Int[Array, "G"],
    transpose: bool,
    interpret: bool = False,
) -> Float[Array, "M _"]:
    """See `Multiply`."""
    num_rows, columns = rows.shape[0], weights.shape[1 if transpose else 2]
    tiles = _tiles(num_rows, weights.shape[0], rows.shape[1], columns)
    weights = pad(weights, dim1=LANES, dim2=LANES)
    rows = pad(rows, dim0=tiles[0], dim1=LANES)
    out = _kernels().gmm(rows, weights, sizes, rows.dtype, tiles, transpose_rhs=transpose, interpret=interpret)
    return out[:num_rows, :columns]


def outer(
    rows: Float[Array, "M K"], grads: Float[Array, "M N"], sizes: Int[Array, "G"], interpret: bool = False
) -> Float[Array, "G K N"]:
    """See `Outer`."""
    size, columns = rows.shape[1], grads.shape[1]
    tiles = _tiles(rows.shape[0], sizes.shape[0], size, columns)
    rows, grads = (pad(a, dim0=tiles[0], dim1=LANES) for a in (rows, grads))
    return _kernels().tgmm(rows.T, grads, sizes, rows.dtype, tiles, interpret=interpret)[:, :size, :columns]


def _tiles(num_rows: int, num_groups: int, size: int, columns: int) -> tuple[int, int, int]:
    mean = num_rows // num_groups
    over = lambda size: largest_tile(padded_size(size, LANES), COLUMNS)
    return next((tile for tile in ROWS if tile <= mean), ROWS[-1]), over(size), over(columns)


DTYPES = ("float32", "bfloat16")
MEGABLOX = Implementation(multiply, outer, platform="tpu", dtypes=DTYPES)
# The same kernels step by step, anywhere: for tests.
INTERPRETED = Implementation(
    functools.partial(multiply, interpret=True), functools.partial(outer, interpret=True), dtypes=DTYPES
)
