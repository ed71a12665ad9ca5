"""Which rows of a global batch a process feeds: those that its devices hold, by the mesh and nothing else."""

from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Shaped

from moe_jax.parallel.mesh import TOKEN_AXES
from moe_jax.parallel.sharding import spec_of


class Part(NamedTuple):
    """Rows `start` to `stop` of a global batch of `rows`: one of equal parts. Processes may have the same."""

    start: int
    stop: int
    rows: int

    @property
    def number(self) -> tuple[int, int]:
        """Which part it is, and of how many."""
        size = self.stop - self.start
        return self.start // size, self.rows // size

    def place(self, own: Shaped[np.ndarray, "B *L"], mesh: Mesh) -> Shaped[Array, "_ *L"]:
        """This process's rows as the global array, of which every device has what it computes with."""
        sharding = NamedSharding(mesh, spec_of(mesh, TOKEN_AXES))
        part, parts = self.number
        rows, first = parts * len(own), part * len(own)

        def of_device(index: tuple[slice, ...] | None) -> np.ndarray:
            start, stop, _ = index[0].indices(rows) if index else (first, first + len(own), 1)
            return own[start - first : stop - first]

        return jax.make_array_from_callback((rows, *own.shape[1:]), sharding, of_device)


def part_of(mesh: Mesh, rows: int) -> Part:
    """The rows of a global batch that this process's devices hold. Where they are not one of equal parts, as on a mesh
    whose devices were laid out across processes, it is the whole batch.
    """
    sharding = NamedSharding(mesh, spec_of(mesh, TOKEN_AXES))
    indices = sharding.addressable_devices_indices_map((rows,)).values()
    held = [index[0].indices(rows) for index in indices if index is not None]
    start, stop = min(begin for begin, _, _ in held), max(end for _, end, _ in held)
    is_whole = len({row for begin, end, _ in held for row in range(begin, end)}) == stop - start
    if is_whole and rows % (stop - start) == 0 and start % (stop - start) == 0:
        return Part(start, stop, rows)
    return Part(0, rows, rows)
