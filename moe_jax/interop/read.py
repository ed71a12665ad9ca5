"""Weights from the tensors of a folder straight onto a mesh: each device's piece is put together on its own."""

import itertools
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import ml_dtypes
import numpy as np

from moe_jax.config.rules import ConfigError
from moe_jax.data.progress import progress
from moe_jax.interop.table import Binding, Layout
from moe_jax.interop.tensors import Tensor

TILE, PADDING = 256, 16  # side of the squares that a matrix is turned in; padding keeps rows out of one cache set
ALIGNMENT = 64  # bytes; from there on XLA's CPU takes an array as its own, without a copy
THREADS = 4
Index = tuple[slice, ...]


def read_weights(
    tensors: Mapping[str, Tensor], bindings: Sequence[Binding], shapes: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """The arrays of `bindings` by path, of the shapes, types and shardings of `shapes`.

    Host memory is needed for one parameter at a time, as far as its pieces are on this process's devices: of the layers
    that a scan stacks, and their experts, a matrix each. The `bindings` have been compared with the tensors.
    """
    weights = {}
    total = sum(num_bytes(shape.shape, shape.dtype) for shape in shapes.values())
    with progress("reading weights", total) as advance, ThreadPoolExecutor(THREADS) as pool:
        for binding in bindings:
            shape = shapes[binding.path]
            weights[binding.path] = _array(tensors, binding, shape, pool)
            advance(num_bytes(shape.shape, shape.dtype))
    return weights


def _array(
    tensors: Mapping[str, Tensor], binding: Binding, shape: jax.ShapeDtypeStruct, pool: ThreadPoolExecutor
) -> jax.Array:
    pieces: dict[tuple[tuple[int, int], ...], np.ndarray] = {}

    def piece(index: Index | None) -> np.ndarray:
        assert index is not None
        whole = tuple(slice(*cut.indices(size)) for cut, size in zip(index, shape.shape, strict=True))
        key = tuple((cut.start, cut.stop) for cut in whole)
        if key not in pieces:  # devices along `data` have the same one
            pieces[key] = read_piece(tensors, binding, whole, shape.dtype, pool)
        return pieces[key]

    return jax.make_array_from_callback(shape.shape, shape.sharding, piece)


def read_piece(
    tensors: Mapping[str, Tensor], binding: Binding, index: Index, dtype: Any, pool: ThreadPoolExecutor
) -> np.ndarray:
    """`index` of one parameter, as `dtype`. Raises ConfigError for numbers that are not finite."""
    stacked = binding.names.ndim
    names = np.asarray(binding.names[index[:stacked]], object)  # of one tensor NumPy makes a string
    out = _aligned([cut.stop - cut.start for cut in index], dtype)
    inner = index[stacked:]

    def fill(place: tuple[int, ...]) -> None:
        _fill(out[place], tensors[names[place]], binding.layout, inner)
        if not np.isfinite(out[place]).all():
            raise ConfigError(f"the tensor {names[place]} has numbers that are not finite: get its file again")

    list(pool.map(fill, itertools.product(*map(range, names.shape))))
    return out


def _fill(out: np.ndarray, tensor: Tensor, layout: Layout, index: Index) -> None:
    """Writes `index` of what `layout` sees in a tensor to `out`; a stack of experts one after another."""
    if out.ndim < 3:
        copy_to(out, layout.view(tensor.read())[index])
        return
    for place, expert in enumerate(range(index[0].start, index[0].stop)):
        copy_to(out[place], layout.view(tensor.read(expert))[index[1:]])


def copy_to(out: np.ndarray, values: np.ndarray) -> None:
    """out[...] = values, of another type or order of axes too. A turned matrix is copied in squares."""
    if values.ndim != 2 or values.flags.c_contiguous or min(values.shape) < TILE:
        _copy(out, values)
        return
    rows, columns = values.shape
    buffer = np.empty((TILE, TILE + PADDING), values.dtype)
    for i, j in itertools.product(range(0, rows, TILE), range(0, columns, TILE)):
        square = values[i : i + TILE, j : j + TILE].T  # as it lies in memory
        near = buffer[: square.shape[0], : square.shape[1]]
        near[...] = square
        _copy(out[i : i + TILE, j : j + TILE], near.T)


def _copy(out: np.ndarray, values: np.ndarray) -> None:
    if values.dtype == ml_dtypes.bfloat16 and out.dtype == np.float32:
        bits = values.view(np.uint16).astype(np.uint32)  # bfloat16 is the upper half of float32
        out.view(np.uint32)[...] = bits << 16
    else:
        out[...] = values


def _aligned(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An array that was not written yet."""
    raw = np.empty(num_bytes(shape, dtype) + ALIGNMENT, np.uint8)
    first = -raw.ctypes.data % ALIGNMENT
    return raw[first : first + num_bytes(shape, dtype)].view(dtype).reshape(shape)


def num_bytes(shape: Sequence[int], dtype: Any) -> int:
    """Bytes of an array."""
    return math.prod(shape) * np.dtype(dtype).itemsize
