"""The exchanges of expert parallelism: how rows travel between the devices along the mesh axis `expert` and back."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Shaped

from moe_jax.parallel.collectives import all_gather, all_to_all, live, varying_alike
from moe_jax.parallel.mesh import EXPERT

Peers = tuple[tuple[int, ...], ...]  # places on the axis that exchange with one another


def to_experts(buffers: Shaped[Array, "G E C D"]) -> Shaped[Array, "_ _ C D"]:
    """From this device's groups and all experts to all the axis's groups and this device's experts."""
    return all_to_all(buffers, EXPERT, split=1, concat=0)


def from_experts(buffers: Float[Array, "_ _ C D"]) -> Float[Array, "G E C D"]:
    """The inverse of `to_experts`."""
    return all_to_all(buffers, EXPERT, split=0, concat=1)


def gather_rows(rows: Shaped[Array, "N *D"]) -> Shaped[Array, "_ *D"]:
    """The rows of all devices along `expert`, one device's behind another's."""
    return all_gather(rows, [EXPERT], 0)


def scatter_sums(rows: Float[Array, "_ D"]) -> Float[Array, "N D"]:
    """Adds up what the devices have for the rows of `gather_rows`, and keeps the sums of this device's own."""
    return lax.psum_scatter(rows, EXPERT, scatter_dimension=0, tiled=True) if live([EXPERT]) else rows


class Padded(NamedTuple):
    """As many rows to each of the peers, empty ones among them: one all-to-all.

    Row z * R + r is the r-th for the z-th peer, and there the r-th from this one.
    """

    peers: Peers | None = None  # those that exchange with one another; None: the whole axis

    def there(self, rows: Shaped[Array, "N *D"]) -> Shaped[Array, "N *D"]:
        """To the peers."""
        return all_to_all(rows, EXPERT, split=0, concat=0, groups=self.peers)

    def back(self, rows: Shaped[Array, "N *D"]) -> Shaped[Array, "N *D"]:
        """The inverse of `there`, which is the same."""
        return self.there(rows)


class Ragged(NamedTuple):
    """Just the rows that there are, behind one another: one ragged all-to-all over the whole axis.

    On CPU, where XLA has none, the same rows travel in an all-to-all that is padded to the most that one device can
    send to another.
    """

    counts: Int[Array, "Z Z"]  # rows from one device (first index) to another
    rows_here: int  # of the buffer that they are sent from
    rows_there: int  # and of the one that they arrive in

    def there(self, rows: Shaped[Array, "N *D"]) -> Shaped[Array, "M *D"]:
        """Rows sorted by the device that they are for, to rows sorted by the device that they are from; zeros behind
        the last one.
        """
        return _ragged(rows, self.counts, self.rows_there, self.rows_here)

    def back(self, rows: Shaped[Array, "M *D"]) -> Shaped[Array, "N *D"]:
        """The inverse of `there`."""
        return _ragged(rows, self.counts.T, self.rows_here, self.rows_there)


def _ragged(rows: Array, counts: Int[Array, "Z Z"], num_there: int, num_here: int) -> Array:
    """Rows by `counts`, to a buffer of `num_there`."""
    if not live([EXPERT]):
        return _resized(rows, num_there)
    if not jnp.issubdtype(rows.dtype, jnp.inexact):
        return _exchange_ragged(num_there, rows, counts)
    return _with_gradient(num_there, num_here, *varying_alike(rows, counts))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _with_gradient(num_there: int, num_here: int, rows: Array, counts: Array) -> Array:
    return _exchange_ragged(num_there, rows, counts)


def _forward(num_there, num_here, rows, counts):
    return _exchange_ragged(num_there, rows, counts), counts


def _backward(num_there, num_here, counts, grads):
    return _exchange_ragged(num_here, grads, counts.T), None


_with_gradient.defvjp(_forward, _backward)


def _exchange_ragged(num_there: int, rows: Array, counts: Int[Array, "Z Z"]) -> Array:
    here = lax.axis_index(EXPERT)
    sent, received = counts[here], counts[:, here]
    starts = jnp.cumsum(sent) - sent
    starts_there = (jnp.cumsum(counts, axis=0) - counts)[here]

    def ragged(rows: Array) -> Array:
        (blank,) = varying_alike(jnp.zeros((num_there, *rows.shape[1:]), rows.dtype), rows)[:1]
        return lax.ragged_all_to_all(rows, blank, starts, sent, starts_there, received, axis_name=EXPERT)

    def padded(rows: Array) -> Array:
        most = min(rows.shape[0], num_there)
        place = jnp.arange(most)
        source = jnp.where(place < sent[:, None], starts[:, None] + place, rows.shape[0])
        pieces = all_to_all(jnp.take(rows, source, axis=0, mode="fill", fill_value=0), EXPERT, split=0, concat=0)
        ends = jnp.cumsum(received)
        row = jnp.arange(num_there)
        device = jnp.searchsorted(ends, row, side="right")
        place = row - jnp.take(ends - received, device, mode="clip")
        source = jnp.where(device < ends.shape[0], device * most + place, pieces.shape[0] * most)
        flat = pieces.reshape(-1, *rows.shape[1:])
        return jnp.take(flat, source, axis=0, mode="fill", fill_value=0)

    return lax.platform_dependent(rows, cpu=padded, default=ragged)


def _resized(rows: Array, length: int) -> Array:
    longer = max(length - rows.shape[0], 0)
    return jnp.pad(rows, [(0, longer), *[(0, 0)] * (rows.ndim - 1)])[:length]
