"""Keys and values of positions that were seen before."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from moe_jax.models.attention.mask import Mask


class KeyValueCache(NamedTuple):
    """A ring with room for P positions: position p is at p mod P, so that the newest P are there.

    Without a window P is the whole length. With one it is at least window + L - 1, L being the most positions that are
    written at once, which then leave what the first of their queries sees.
    """

    keys: Float[Array, "B P J N"]
    values: Float[Array, "B P J W"]

    def write(self, mask: Mask, keys: Float[Array, "B L J N"], values: Float[Array, "B L J W"]) -> "KeyValueCache":
        """The cache with those of the queries of `mask` that are there, L consecutive positions a sequence."""
        room, (batch, length) = self.keys.shape[1], keys.shape[:2]
        positions = jnp.broadcast_to(mask.query_positions(length), (batch, length))
        place = positions % room
        if mask.count is not None:
            place = jnp.where(jnp.arange(length) < mask.count[:, None], place, room)
        sequence = jnp.arange(batch)[:, None]
        put = lambda held, new: held.at[sequence, place].set(new.astype(held.dtype), mode="drop")
        return KeyValueCache(put(self.keys, keys), put(self.values, values))

    def positions(self, newest: Int[Array, "B"]) -> Int[Array, "B P"]:
        """The position at each place when `newest` is the last one written; later than it where nothing is yet."""
        room = self.keys.shape[1]
        place = jnp.arange(room)
        return place + room * jnp.maximum((newest[:, None] - place) // room, 0)

    def seen_by(self, mask: Mask, queries: int) -> tuple["KeyValueCache", Mask]:
        """What the queries of `mask`, once written, attend to: the part that `mask.reach` leaves, and the mask with its
        positions.
        """
        count = queries if mask.count is None else mask.count
        newest = jnp.broadcast_to(mask.start + count - 1, self.keys.shape[:1])
        end = min(mask.reach or self.keys.shape[1], self.keys.shape[1])  # a ring that is longer has not gone round
        part = KeyValueCache(self.keys[:, :end], self.values[:, :end])
        return part, dataclasses.replace(mask, key_positions=self.positions(newest)[:, :end])

    @staticmethod
    def empty(
        batch: int, length: int, heads: tuple[int, int], sizes: tuple[int, int], dtype: DTypeLike
    ) -> "KeyValueCache":
        """A cache without anything in it; `heads` and `sizes` of keys and of values."""
        zeros: Any = [
            jnp.zeros((batch, length, number, size), dtype) for number, size in zip(heads, sizes, strict=True)
        ]
        return KeyValueCache(*zeros)
