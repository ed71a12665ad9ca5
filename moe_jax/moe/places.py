"""Where a device puts the rows that it has received: in sorted order, or in the slots of its experts' buffers."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from moe_jax.moe.delivery import Beside
from moe_jax.moe.permute import permute


class Places(NamedTuple):
    """A one-to-one map between choices of rows (entry j of row n is n * J + j) and P places, from both sides."""

    entry_in_place: Int[Array, "P"]  # N * J: the place is empty
    place_of_entry: Int[Array, "N J"]  # P: the entry has no place

    def row_in_place(self) -> Int[Array, "P"]:
        """The row; N: the place is empty."""
        return self.entry_in_place // self.place_of_entry.shape[1]

    def enter(self, rows: Float[Array, "N D"], beside: Beside) -> Float[Array, "P D"]:
        """The row of each place, times the input gate of the choice; zeros in empty places."""
        placed = permute(rows, self.row_in_place(), self.place_of_entry)
        if beside.input_gate is None:
            return placed
        gate = permute(beside.input_gate.reshape(-1, 1), self.entry_in_place, self.place_of_entry.reshape(-1, 1))
        return (placed.astype(gate.dtype) * gate).astype(rows.dtype)

    def noise(self, beside: Beside) -> UInt32[Array, "P w"] | None:
        """The random numbers of each place's token."""
        if beside.noise is None:
            return None
        return jnp.take(beside.noise, self.row_in_place(), axis=0, mode="fill", fill_value=0)

    def leave(self, out: Float[Array, "P D"], beside: Beside) -> Float[Array, "N D"]:
        """Each row's sum over its entries' places, times their gates and in the gates' precision, if it has gates."""
        chosen = permute(out, self.place_of_entry.reshape(-1), self.entry_in_place[:, None])
        chosen = chosen.reshape(*self.place_of_entry.shape, -1)
        if beside.gate is None:
            return jnp.sum(chosen, axis=1)
        return jnp.sum(chosen.astype(beside.gate.dtype) * beside.gate[..., None], axis=1).astype(out.dtype)
