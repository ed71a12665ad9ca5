"""Weights in forms that are only computed with: int8, and the matrices of experts as arrays of their own."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from moe_jax.parallel.sharding import Packed


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized(Packed):
    """A matrix, or a stack of them, in int8: values * scale, with a scale for each column (output channel)."""

    values: Any  # int8 [*E, I, O]; like `scale` a sharding or a shape where the tree holds those
    scale: Any  # float32 [*E, 1, O]

    def unpack(self, dtype: DTypeLike) -> Float[Array, "*E I O"]:
        """See `Packed`."""
        return self.values.astype(dtype) * self.scale.astype(dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pieces(Packed):
    """A stack of E matrices, one array for each expert of a device: [1, I, O] each. A matrix that is cut out of a stack
    is copied before it is used, by XLA for CPUs at least.
    """

    parts: Sequence[Any]  # arrays or `Quantized`

    def unpack(self, dtype: DTypeLike) -> Float[Array, "E I O"]:
        """See `Packed`."""
        return jnp.concatenate([whole(part, dtype) for part in self.parts])


def whole(stored: Array | Packed, dtype: DTypeLike) -> Array:
    """A weight as an array."""
    return stored.unpack(dtype) if isinstance(stored, Packed) else stored.astype(dtype)


def of_expert(stored: Array | Packed, expert: int | Int[Array, ""], dtype: DTypeLike) -> Array:
    """What one expert has of a weight; of `Pieces` the expert's number has to be known when the program is built."""
    if isinstance(stored, Pieces):
        return whole(stored.parts[int(expert)], dtype)[0]
    return whole(jax.tree.map(lambda array: array[expert], stored), dtype)


def quantize(weight: Float[Array, "*E I O"]) -> Quantized:
    """The nearest int8 numbers, a column's largest being 127."""
    largest = jnp.max(jnp.abs(weight), axis=-2, keepdims=True)
    scale = jnp.where(largest > 0, largest, 1) / 127
    return Quantized(jnp.round(weight / scale).astype(jnp.int8), scale)
