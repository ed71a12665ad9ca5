"""Sizes that a kernel's tiles divide."""

import jax.numpy as jnp
from jaxtyping import Array


def padded_size(size: int, multiple: int) -> int:
    """The next multiple."""
    return -(-size // multiple) * multiple


def pad(x: Array, **multiples: int) -> Array:
    """Zeros behind the last entries of some dimensions: pad(x, dim0=8, dim1=128)."""
    widths = [(0, padded_size(size, multiples.get(f"dim{dim}", 1)) - size) for dim, size in enumerate(x.shape)]
    return jnp.pad(x, widths) if any(behind for _, behind in widths) else x


def largest_tile(size: int, tiles: tuple[int, ...]) -> int:
    """The largest of `tiles`, in falling order, that divides `size`; the smallest where none does."""
    return next((tile for tile in tiles if size % tile == 0), tiles[-1])
