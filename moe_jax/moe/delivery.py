"""Tokens in rows that cross the mesh to the devices of their experts, and sums that come back.

A *row* is a token on its way to one device, with J of its choices beside it: the *address* of each at the device, and
what it needs there. With `unique` rows a token crosses once to each device that has any of its experts (J is at most
the number of experts there), and its row comes back as the sum of their outputs times their gates; otherwise each
choice is a row (J = 1), and the sender multiplies with the gates. Addresses are numbers of experts, or of slots in
their buffers: whoever receives knows.

What moves, moves by gathers in both passes (`permute`): only tables of integers are written by scatter.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, UInt32

from moe_jax.moe.permute import permute
from moe_jax.parallel.collectives import all_gather, index_over
from moe_jax.parallel.exchange import Padded, Peers, Ragged, gather_rows, scatter_sums
from moe_jax.parallel.mesh import EXPERT

DISPATCHED, RETURNED = EXCHANGED = ("dispatched", "returned")  # checkpoint names of what crossed the mesh


class Beside(NamedTuple):
    """What goes with rows."""

    address: Int[Array, "N J"]  # of each choice; the number of addresses that the receiver has: no choice
    gate: Float[Array, "N J"] | None = None  # weight of an output in the row's sum; None: one choice a row, weight 1
    input_gate: Float[Array, "N J"] | None = None  # weight of an expert's input; None: 1
    noise: UInt32[Array, "N w"] | None = None  # the token's own random numbers, for expert dropout


# (rows [N, D], what goes with them) -> [N, D]: each row's sum over its choices.
Receiver = Callable[[Float[Array, "N D"], Beside], Float[Array, "N D"]]


class Level(NamedTuple):
    """One exchange between `devices` peers, each of which serves `addresses` addresses."""

    devices: int
    addresses: int
    entries: int  # J
    unique: bool
    rows: int  # R, that each device may send to each other one; ragged: that a device may receive
    peers: Peers | None = None  # those that exchange with one another; None: the whole axis
    sends: int = 0  # ragged: rows of the buffer that a device sends from; 0: it is not ragged


class Parcels(NamedTuple):
    """Which choices travel in which rows: a one-to-one map between choices and entries, from both sides."""

    entry_of_choice: Int[Array, "T K"]  # row * J + entry; N * J: not sent
    choice_in_entry: Int[Array, "N J"]  # t * K + k; T * K: none

    def rows_of_token(self) -> Int[Array, "T K"]:
        """The row that begins with a choice; N where it begins none."""
        entries = self.choice_in_entry.shape[1]
        begins = self.entry_of_choice % entries == 0
        return jnp.where(begins, self.entry_of_choice // entries, self.choice_in_entry.shape[0])

    def token_in_row(self) -> Int[Array, "N"]:
        """The token of a row; T: the row is empty."""
        return self.choice_in_entry[:, 0] // self.entry_of_choice.shape[1]


def deliver(
    x: Float[Array, "T D"], beside: Beside, levels: Sequence[Level], receive: Receiver, wire: DTypeLike
) -> tuple[Float[Array, "T D"], Bool[Array, "T K"]]:
    """Each token's sum over its choices, K a token, and which of them were carried.

    The rows go through one exchange after another, from the whole axis to parts of it, and in `wire` precision. Only
    the first may lack rows: `levels` of the others have as many as can come.
    """
    if not levels:
        return receive(x, beside), jnp.ones(beside.address.shape, bool)
    level, *rest = levels
    device = jnp.minimum(beside.address // level.addresses, level.devices)
    parcels, route = _pack(device, level)
    there = _beside_rows(beside, parcels, level)
    rows = permute(x, parcels.token_in_row(), parcels.rows_of_token()).astype(wire)
    rows = checkpoint_name(route.there(rows), DISPATCHED).astype(x.dtype)
    there = jax.tree.map(lambda table: checkpoint_name(route.there(table), DISPATCHED), there)
    if isinstance(route, Ragged):  # what is behind the last row arrives as zeros
        arrived = jnp.arange(rows.shape[0]) < jnp.sum(route.counts[:, index_over([EXPERT])])
        there = there._replace(address=jnp.where(arrived[:, None], there.address, level.addresses))
    y, _ = deliver(rows, there, rest, receive, wire)
    y = checkpoint_name(route.back(y.astype(wire)), RETURNED).astype(x.dtype)
    return _sum_of_rows(y, beside.gate, parcels, level.unique), parcels.entry_of_choice < parcels.choice_in_entry.size


def deliver_to_all(
    x: Float[Array, "T D"], beside: Beside, level: Level, receive: Receiver, wire: DTypeLike
) -> tuple[Float[Array, "T D"], Bool[Array, "T K"]]:
    """The same by gathering all tokens on all devices and adding up what these make of them: nothing can be lost."""
    rows = checkpoint_name(gather_rows(x.astype(wire)), DISPATCHED).astype(x.dtype)
    everything = jax.tree.map(lambda table: checkpoint_name(gather_rows(table), DISPATCHED), beside)
    first = index_over([EXPERT]) * level.addresses
    local = everything.address - first
    is_here = (local >= 0) & (local < level.addresses)
    # The choices that are for this device first, J of them.
    choice = jnp.argsort(~is_here, axis=1, stable=True)[:, : level.entries]
    pick = lambda table: None if table is None else _take_choices(table, choice)
    address = jnp.where(
        jnp.take_along_axis(is_here, choice, axis=1), jnp.take_along_axis(local, choice, axis=1), level.addresses
    )
    here = Beside(address, pick(everything.gate), pick(everything.input_gate), everything.noise)
    y = checkpoint_name(scatter_sums(receive(rows, here).astype(wire)), RETURNED)
    return y.astype(x.dtype), jnp.ones(beside.address.shape, bool)


def _take_choices(table: Float[Array, "N K"], choice: Int[Array, "N J"]) -> Float[Array, "N J"]:
    """Compares instead of indexing, whose gradient would be a scatter."""
    chosen = choice[..., None] == jnp.arange(table.shape[1])
    return jnp.sum(jnp.where(chosen, table[:, None, :], 0), axis=-1)


def _pack(device: Int[Array, "T K"], level: Level) -> tuple[Parcels, Padded | Ragged]:
    """Rows in the order of tokens. What is too much for a device is left behind, the last tokens of a sender first, and
    where a device's whole buffer is bounded, those of the last senders.
    """
    tokens, k = device.shape
    sent = device < level.devices
    same = (device[:, :, None] == device[:, None, :]) & jnp.tril(jnp.ones((k, k), bool), -1)
    rank = jnp.sum(same, axis=-1) if level.unique else jnp.zeros_like(device)
    begins = jax.nn.one_hot(jnp.where(rank == 0, device, level.devices), level.devices, dtype=jnp.int32)
    begun = jnp.cumsum(begins.reshape(tokens * k, -1), axis=0)
    place = jnp.sum(begun * jax.nn.one_hot(device.reshape(-1), level.devices, dtype=jnp.int32), axis=-1)
    place = place.reshape(tokens, k) - 1
    if level.sends:
        wanted = begun[-1]
        counts = checkpoint_name(_allowed(all_gather(wanted[None], [EXPERT], 0), level.rows), DISPATCHED)
        ours = counts[index_over([EXPERT])]
        fits = place < jnp.take(ours, device, mode="clip")
        num_rows = level.sends
        row = jnp.take(jnp.cumsum(ours) - ours, device, mode="clip") + place
        route: Padded | Ragged = Ragged(counts, num_rows, level.rows)
    else:
        fits = place < level.rows
        num_rows = level.devices * level.rows
        row = device * level.rows + place
        route = Padded(level.peers)
    entries = num_rows * level.entries
    entry = jnp.where(sent & fits & (rank < level.entries), row * level.entries + rank, entries).astype(jnp.int32)
    choices = jnp.arange(tokens * k, dtype=jnp.int32)
    choice_in_entry = jnp.full((entries,), tokens * k, jnp.int32).at[entry.reshape(-1)].set(choices, mode="drop")
    return Parcels(entry, choice_in_entry.reshape(num_rows, level.entries)), route


def _allowed(wanted: Int[Array, "Z Z"], rows: int) -> Int[Array, "Z Z"]:
    """How many rows the devices (first index) may send to each other one, of which each takes `rows` in all."""
    before = jnp.cumsum(wanted, axis=0) - wanted
    return jnp.clip(rows - before, 0, wanted)


def _beside_rows(beside: Beside, parcels: Parcels, level: Level) -> Beside:
    """What goes with the rows, at the sender."""
    nowhere = level.devices * level.addresses
    entries = parcels.choice_in_entry
    address = jnp.take(beside.address.reshape(-1), entries, mode="fill", fill_value=nowhere)
    address = jnp.where(address < nowhere, address % level.addresses, level.addresses)

    def of_entries(table: Float[Array, "T K"] | None) -> Float[Array, "N J"] | None:
        if table is None:
            return None
        targets = parcels.entry_of_choice.reshape(-1, 1)
        return permute(table.reshape(-1, 1), entries.reshape(-1), targets).reshape(entries.shape)

    noise = beside.noise
    if noise is not None:
        noise = jnp.take(noise, parcels.token_in_row(), axis=0, mode="fill", fill_value=0)
    return Beside(address, of_entries(beside.gate) if level.unique else None, of_entries(beside.input_gate), noise)


def _sum_of_rows(
    y: Float[Array, "N D"], gate: Float[Array, "T K"] | None, parcels: Parcels, unique: bool
) -> Float[Array, "T D"]:
    """Each token's sum of its rows, times the gates where a row is a choice."""
    tokens, k = parcels.entry_of_choice.shape
    begins = jnp.where(parcels.choice_in_entry[:, :1] < tokens * k, parcels.choice_in_entry[:, :1], tokens * k)
    chosen = permute(y, parcels.rows_of_token().reshape(-1), begins).reshape(tokens, k, -1)
    if unique or gate is None:
        return jnp.sum(chosen, axis=1)
    return jnp.sum(chosen.astype(gate.dtype) * gate[..., None], axis=1).astype(y.dtype)
