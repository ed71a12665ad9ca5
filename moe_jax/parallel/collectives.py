"""Collectives over mesh axes, inside `shard_map`. Axes of one device are left out.

XLA does not remove a collective of one participant everywhere (on CPU each is a copy: of every gradient, for instance),
and a value that never met an axis needs no sum over it. So one device runs the same code and pays for none of it.
"""

import functools
import math
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, PyTree

TILE_ROWS, LANES = 16, 128  # of a TPU's tile of bfloat16, the larger one: float32 has 8 rows


def live(axes: Sequence[str]) -> tuple[str, ...]:
    """Those of `axes` along which there is more than one device."""
    return tuple(axis for axis in axes if lax.axis_size(axis) > 1)


def sum_over(tree: PyTree, axes: Sequence[str]) -> PyTree:
    """Sums every array of `tree` over the devices along `axes`, in one collective where XLA can."""
    return lax.psum(tree, live(axes)) if live(axes) else tree


def max_over(x: Array, axes: Sequence[str]) -> Array:
    """The maximum over the devices along `axes`."""
    return lax.pmax(x, live(axes)) if live(axes) else x


def varies(x: Array, axis: str) -> bool:
    """Whether devices along `axis` may have different values of `x`."""
    return axis in jax.typeof(x).manual_axis_type.varying


def varying(x: Array, axes: Sequence[str]) -> Array:
    """Marks `x`, equal on all devices along `axes`, as the place where their computations part.

    The gradient of what follows is summed over `axes` here. Along an axis where `x` varies already nothing changes.
    """
    apart = tuple(axis for axis in live(axes) if not varies(x, axis))
    return lax.pcast(x, apart, to="varying") if apart else x


def varying_alike(*arrays: Array) -> tuple[Array, ...]:
    """The arrays, each made to vary over all the axes that one of them varies over."""
    axes = set().union(*(jax.typeof(x).manual_axis_type.varying for x in arrays))
    return tuple(varying(x, sorted(axes)) for x in arrays)


def index_over(axes: Sequence[str]) -> Int[Array, ""] | int:
    """This device's place along `axes`, the last axis minor."""
    return lax.axis_index(live(axes)) if live(axes) else 0


def all_gather(x: Array, axes: Sequence[str], dim: int) -> Array:
    """Joins pieces of dimension `dim`, cut over `axes` major first; the transpose is a reduce-scatter.

    One axis at a time, the minor one first: XLA for TPU turns a gather over two axes into an all-reduce of a padded
    buffer. It pads rows that do not fill its tiles before it scatters them too, or sums them whole; as a dimension of
    their own in front of the tiles the pieces stay as they are.
    """
    for axis in reversed(live(axes)):
        if x.shape[dim] % TILE_ROWS == 0:
            x = lax.all_gather(x, axis, axis=dim, tiled=True)
        else:
            flat = x.reshape(*x.shape[:dim], -1, LANES) if _is_sliver(x, dim) else x
            pieces = lax.all_gather(flat, axis, axis=dim, tiled=False)
            x = pieces.reshape(*x.shape[:dim], -1, *x.shape[dim + 1 :])
    return x


def _is_sliver(x: Array, dim: int) -> bool:
    """Whether a piece of a matrix is a few rows that would fill tiles, but only one behind another."""
    rows, columns = x.shape[dim], math.prod(x.shape[dim + 1 :])
    return dim == x.ndim - 2 and rows < TILE_ROWS and rows * columns % (TILE_ROWS * LANES) == 0


def all_to_all(x: Array, axis: str, split: int, concat: int, groups: Sequence[Sequence[int]] | None = None) -> Array:
    """Cuts dimension `split` into a piece for each device along `axis` and joins the received ones along `concat`.

    With `groups` of places on the axis each exchanges among itself.
    """
    if not live([axis]) or (groups is not None and len(groups[0]) == 1):
        return x
    return lax.all_to_all(x, axis, split, concat, tiled=True, axis_index_groups=groups)


def once(x: Array, axis: str) -> Array:
    """`x`, equal on all devices along `axis`, as its first device's part of a sum over it: zeros on the others."""
    return jnp.where(index_over([axis]) == 0, varying(x, [axis]), 0) if live([axis]) else x


def sum_parts(parts: Sequence[Array], axis: str) -> Array:
    """The sum of `parts`. Those that vary over `axis` are this device's share of a sum, which is made once for all of
    them together; the others are whole already.
    """
    shares = [part for part in parts if varies(part, axis)]
    whole = [part for part in parts if not varies(part, axis)]
    summed = [sum_over(functools.reduce(operator.add, shares), [axis])] if shares else []
    return functools.reduce(operator.add, [*whole, *summed])
