"""The dispatcher that drops nothing: choices sorted by expert, and a grouped matmul over what each expert has."""

from fractions import Fraction

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from moe_jax.moe.delivery import Beside, Level, deliver, deliver_to_all
from moe_jax.moe.dispatchers.dispatcher import Dispatcher
from moe_jax.moe.dispatchers.once import beside_tokens
from moe_jax.moe.dropout import hidden_mask
from moe_jax.moe.feed_forward import Experts
from moe_jax.moe.levels import GATHERING, levels_of
from moe_jax.moe.places import Places
from moe_jax.moe.wires import gather_wires, level_wires
from moe_jax.parallel.collectives import index_over
from moe_jax.parallel.mesh import EXPERT


class Dropless(Dispatcher):
    """Every choice is carried, whatever the skew: an expert has as many rows as there are choices of it (MegaBlocks,
    Gale et al. 2023).

    Over the mesh axis `expert` tokens travel by `moe.exchange`. Only with `moe.exchange_bound` can choices be lost, and
    they are counted; who loses then depends on the mesh.
    """

    def __call__(self, x, routing, experts, context):
        """See `Dispatcher.__call__`."""
        moe, devices = self.moe, lax.axis_size(EXPERT)
        groups, tokens, size = x.shape
        beside = beside_tokens(jnp.where(routing.wanted, routing.expert, moe.num_experts), routing, context, moe)
        flat = x.reshape(-1, size)
        receive = lambda rows, beside: self._of_experts(rows, beside, experts)
        wire = moe.exchange_dtype or x.dtype
        if devices > 1 and moe.exchange in GATHERING:
            y, carried = deliver_to_all(flat, beside, self._gathering(devices), receive, wire)
        else:
            y, carried = deliver(flat, beside, levels_of(moe, devices, groups * tokens), receive, wire)
        return y.reshape(x.shape), routing.wanted & carried.reshape(routing.wanted.shape)

    def _gathering(self, devices: int) -> Level:
        local = self.moe.num_experts // devices
        return Level(devices, local, min(self.moe.top_k, local), unique=True, rows=0)

    def _of_experts(self, rows: Float[Array, "N D"], beside: Beside, experts: Experts) -> Float[Array, "N D"]:
        """Each row's sum over those of its choices that this device's experts serve."""
        weights = experts.gathered(rows.dtype)
        num_rows, entries = beside.address.shape
        local, _, hidden = weights.up.shape
        most = num_rows * min(entries, local)  # a token visits an expert once
        address, order = lax.sort_key_val(beside.address.reshape(-1), jnp.arange(num_rows * entries, dtype=jnp.int32))
        ends = jnp.searchsorted(address, jnp.arange(local), side="right").astype(jnp.int32)
        entry = jnp.where(jnp.arange(most) < ends[-1], order[:most], order.size)
        place = jnp.full((order.size,), most, jnp.int32).at[entry].set(jnp.arange(most, dtype=jnp.int32), mode="drop")
        places, mask = Places(entry, place.reshape(num_rows, entries)), None
        if (noise := places.noise(beside)) is not None:
            expert = index_over([EXPERT]) * local + address[:most]
            mask = hidden_mask(noise, expert, self.moe.expert_dropout, hidden).astype(rows.dtype)
        name = "padded" if self.moe.grouped_matmul == "auto" else self.moe.grouped_matmul  # runs anywhere
        out = experts.of_rows(places.enter(rows, beside), jnp.diff(ends, prepend=0), weights, name, mask)
        return places.leave(out, beside)

    def wires(self, devices, groups, remat):
        """See `Dispatcher.wires`."""
        tokens = groups * self.moe.group_size
        if self.moe.exchange in GATHERING:
            return gather_wires(self.moe, self._gathering(devices), tokens, remat)
        return level_wires(self.moe, levels_of(self.moe, devices, tokens), remat)

    def capacity(self, train: bool = True) -> int:
        """T: all tokens of a group may go to one expert."""
        return self.moe.group_size

    def nominal_capacity(self, train: bool = True) -> Fraction:
        """T."""
        return Fraction(self.moe.group_size)

    def random_drop_fraction(self, train: bool = True) -> float:
        """0, unless `moe.exchange_bound` is set."""
        return 0.0
