"""Keys and values of positions that were seen before."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int


class KeyValueCache(NamedTuple):
    """Room for P positions, of which those at later positions than the last query are not yet written."""

    keys: Float[Array, "B P J N"]
    values: Float[Array, "B P J N"]

    def write(
        self,
        start: Int[Array, ""] | Int[Array, "B"] | int,
        keys: Float[Array, "B L J N"],
        values: Float[Array, "B L J N"],
    ) -> "KeyValueCache":
        """The cache with those of L consecutive positions from `start` on, which may differ between sequences."""
        starts = jnp.broadcast_to(start, keys.shape[:1])
        write = jax.vmap(lambda room, new, at: lax.dynamic_update_slice_in_dim(room, new, at, axis=0))
        put = lambda room, new: write(room, new.astype(room.dtype), starts)
        return KeyValueCache(put(self.keys, keys), put(self.values, values))

    @staticmethod
    def empty(batch: int, length: int, heads: int, size: int, dtype) -> "KeyValueCache":
        """A cache without anything in it."""
        zeros = jnp.zeros((batch, length, heads, size), dtype)
        return KeyValueCache(zeros, zeros)
