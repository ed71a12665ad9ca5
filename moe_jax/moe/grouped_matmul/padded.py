"""Groups of rows in batches of equal size, by XLA's batched matmul: exact whatever the sizes, and fast on a CPU.

All groups together form one batch of C rows each, and what a group has beyond C goes through in blocks, one after
another. C is chosen when the program runs, among a few, by the work that it makes for the groups' real sizes: a little
more than their mean where they are balanced, and then with small blocks for the few rows beyond it; less and with large
blocks where they are not. So nothing of the size of the worst case exists.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from moe_jax.moe.grouped_matmul.implementation import Implementation

# Multiples of the mean size that C is chosen among, in turn with large and with small blocks beside it.
SKEWED, BALANCED = (0.5, 1.0), (1.0625, 1.125, 1.1875, 1.25, 1.375, 1.5)
BLOCK, SMALL_BLOCK = 256, 32  # rows of a block
BLOCK_OVERHEAD = 64  # rows that could be multiplied while the matrix of a block is copied


def multiply(
    rows: Float[Array, "M _"], weights: Float[Array, "G K N"], sizes: Int[Array, "G"], transpose: bool
) -> Float[Array, "M _"]:
    """See `Multiply`; zeros past the last group."""
    product = "gcn,gkn->gck" if transpose else "gck,gkn->gcn"

    def with_batch(batch: Batch) -> Float[Array, "M _"]:
        groups = _groups(sizes, batch, rows.shape[0])
        y = _leave(jnp.einsum(product, _enter(rows, groups), weights), groups)

        def add(block: _Block, y: Array) -> Array:
            new = _cut(rows, block) @ (weights[block.group].T if transpose else weights[block.group])
            old = _cut(y, block)
            return lax.dynamic_update_slice_in_dim(y, jnp.where(block.inside[:, None], new, old), block.start, 0)

        return _for_blocks(add, y, groups)

    return _with_least_work(with_batch, sizes, rows.shape[0])


def outer(rows: Float[Array, "M K"], grads: Float[Array, "M N"], sizes: Int[Array, "G"]) -> Float[Array, "G K N"]:
    """See `Outer`."""

    def with_batch(batch: Batch) -> Float[Array, "G K N"]:
        groups = _groups(sizes, batch, rows.shape[0])
        sums = jnp.einsum("gck,gcn->gkn", _enter(rows, groups), _enter(grads, groups))

        def add(block: _Block, sums: Array) -> Array:
            inside = jnp.where(block.inside[:, None], _cut(rows, block), 0)
            return sums.at[block.group].add(inside.T @ _cut(grads, block))

        return _for_blocks(add, sums, groups)

    return _with_least_work(with_batch, sizes, rows.shape[0])


PADDED = Implementation(multiply, outer)


class Batch(NamedTuple):
    """One way to multiply: a batch of `capacity` rows for each group, and the rest in blocks of `block` rows."""

    capacity: int
    block: int


def batches(num_rows: int, num_groups: int) -> tuple[Batch, ...]:
    """The ways of which a run picks one."""
    mean = num_rows / num_groups
    capacity = lambda multiple: min(num_rows, 8 * math.ceil(mean * multiple / 8))
    found = {capacity(multiple): Batch(capacity(multiple), min(SMALL_BLOCK, num_rows)) for multiple in BALANCED}
    found |= {capacity(multiple): Batch(capacity(multiple), min(BLOCK, num_rows)) for multiple in SKEWED}
    return tuple(found[key] for key in sorted(found))


def work(sizes: Int[Array, "G"], num_rows: int) -> Sequence[Int[Array, ""]]:
    """For each of `batches`, the rows that could be multiplied meanwhile."""
    return [
        sizes.shape[0] * batch.capacity + jnp.sum(_num_blocks(sizes, batch)) * (batch.block + BLOCK_OVERHEAD)
        for batch in batches(num_rows, sizes.shape[0])
    ]


def _with_least_work(with_batch: Callable[[Batch], Array], sizes: Int[Array, "G"], num_rows: int) -> Array:
    branches = [lambda batch=batch: with_batch(batch) for batch in batches(num_rows, sizes.shape[0])]
    return lax.switch(jnp.argmin(jnp.stack(work(sizes, num_rows))), branches)


class _Groups(NamedTuple):
    """Where the rows of the groups are, in their own order and in a batch of C rows for each."""

    batch: Batch
    starts: Int[Array, "G"]
    sizes: Int[Array, "G"]
    source: Int[Array, "G C"]  # the row at a place of the batch; M: none
    place: Int[Array, "M"]  # of a row in the batch, g * C + c; G * C: none


class _Block(NamedTuple):
    """Some rows of one group: those from `start` on that are `inside`."""

    group: Int[Array, ""]
    start: Int[Array, ""]
    inside: Bool[Array, "b"]


def _groups(sizes: Int[Array, "G"], batch: Batch, num_rows: int) -> _Groups:
    ends = jnp.cumsum(sizes)
    starts = ends - sizes
    capacity = batch.capacity
    place = jnp.arange(capacity)
    source = jnp.where(place < sizes[:, None], starts[:, None] + place, num_rows)
    row = jnp.arange(num_rows)
    group = jnp.searchsorted(ends, row, side="right")
    place = row - jnp.take(starts, group, mode="clip")
    inside = (group < sizes.shape[0]) & (place < capacity)
    return _Groups(batch, starts, sizes, source, jnp.where(inside, group * capacity + place, source.size))


def _enter(rows: Float[Array, "M K"], groups: _Groups) -> Float[Array, "G C K"]:
    """Rows in the batch, zeros where a group has no more."""
    return jnp.take(rows, groups.source, axis=0, mode="fill", fill_value=0)


def _leave(batch: Float[Array, "G C N"], groups: _Groups) -> Float[Array, "M N"]:
    """The inverse of `_enter`, zeros where a row is in no batch."""
    return jnp.take(batch.reshape(-1, batch.shape[-1]), groups.place, axis=0, mode="fill", fill_value=0)


def _num_blocks(sizes: Int[Array, "G"], batch: Batch) -> Int[Array, "G"]:
    """The blocks of what each group has beyond the batch."""
    return -(-jnp.maximum(sizes - batch.capacity, 0) // batch.block)


def _for_blocks(add: Callable[[_Block, Array], Array], sums: Array, groups: _Groups) -> Array:
    """Goes with `sums` through the blocks that are needed."""
    num_rows = groups.place.shape[0]
    capacity, block = groups.batch
    blocks = _num_blocks(groups.sizes, groups.batch)
    ends = jnp.cumsum(blocks)

    def body(number: Array, sums: Array) -> Array:
        group = jnp.searchsorted(ends, number, side="right")
        first = groups.starts[group] + capacity + (number - ends[group] + blocks[group]) * block
        last = jnp.minimum(first + block, groups.starts[group] + groups.sizes[group])
        start = jnp.minimum(first, num_rows - block)  # a slice does not go past the end
        row = start + jnp.arange(block)
        return add(_Block(group, start, (row >= first) & (row < last)), sums)

    return lax.fori_loop(0, ends[-1], body, sums)


def _cut(rows: Float[Array, "M K"], block: _Block) -> Float[Array, "b K"]:
    """The block's rows, those that are not inside among them."""
    return lax.dynamic_slice_in_dim(rows, block.start, block.inside.shape[0])
