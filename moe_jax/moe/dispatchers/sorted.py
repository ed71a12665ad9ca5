"""The dispatcher that drops nothing: choices sorted by expert, and a grouped matmul over what each expert really has."""

from fractions import Fraction

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from moe_jax.moe.context import Context
from moe_jax.moe.delivery import Beside, Level, deliver, deliver_to_all
from moe_jax.moe.dispatchers.dispatcher import Dispatcher
from moe_jax.moe.dropout import hidden_mask, token_noise
from moe_jax.moe.feed_forward import Experts, Weights
from moe_jax.moe.levels import levels_of
from moe_jax.moe.permute import permute
from moe_jax.parallel.collectives import index_over, varying
from moe_jax.parallel.mesh import EXPERT, TENSOR


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
        flat = lambda a: None if a is None else a.reshape(groups * tokens, a.shape[-1])
        beside = Beside(
            address=flat(jnp.where(routing.wanted, routing.expert, moe.num_experts)),
            gate=flat(varying(routing.gate, [TENSOR])),
            input_gate=flat(routing.input_gate),
            noise=flat(token_noise(context.keys, tokens)) if moe.expert_dropout and context.keys is not None else None,
        )
        weights = experts.gathered(x.dtype)
        receive = lambda rows, beside: self._of_experts(rows, beside, experts, weights, context)
        wire = moe.exchange_dtype or x.dtype
        if devices > 1 and moe.exchange in ("auto", "all_gather"):
            y, carried = deliver_to_all(flat(x), beside, self._gathering(devices), receive, wire)
        else:
            y, carried = deliver(flat(x), beside, levels_of(moe, devices, groups * tokens), receive, wire)
        return y.reshape(x.shape), routing.wanted & carried.reshape(routing.wanted.shape)

    def _gathering(self, devices: int) -> Level:
        local = self.moe.num_experts // devices
        return Level(devices, local, min(self.moe.top_k, local), unique=True, rows=0)

    def _of_experts(
        self, rows: Float[Array, "N D"], beside: Beside, experts: Experts, weights: Weights, context: Context
    ) -> Float[Array, "N D"]:
        """Each row's sum over those of its choices that this device's experts serve."""
        num_rows, entries = beside.address.shape
        local = weights.up.shape[0]
        most = num_rows * min(entries, local)  # a token visits an expert once
        address, order = lax.sort_key_val(beside.address.reshape(-1), jnp.arange(num_rows * entries, dtype=jnp.int32))
        ends = jnp.searchsorted(address, jnp.arange(local), side="right").astype(jnp.int32)
        sizes = jnp.diff(ends, prepend=0)
        entry = jnp.where(jnp.arange(most) < ends[-1], order[:most], order.size)  # of each sorted row
        place = jnp.full((order.size,), most, jnp.int32).at[entry].set(jnp.arange(most, dtype=jnp.int32), mode="drop")
        row = jnp.where(entry < order.size, entry // entries, num_rows)
        sorted_rows = permute(rows, row, place.reshape(num_rows, entries))
        if beside.input_gate is not None:
            gate = permute(beside.input_gate.reshape(-1, 1), entry, place[:, None])
            sorted_rows = (sorted_rows.astype(gate.dtype) * gate).astype(rows.dtype)
        mask = None
        if beside.noise is not None:
            noise = jnp.take(beside.noise, row, axis=0, mode="fill", fill_value=0)
            expert = index_over([EXPERT]) * local + address[:most]
            hidden = weights.up.shape[-1]
            mask = hidden_mask(noise, expert, self.moe.expert_dropout, hidden, context.keys).astype(rows.dtype)
        name = "padded" if self.moe.grouped_matmul == "auto" else self.moe.grouped_matmul  # runs anywhere
        out = experts.of_rows(sorted_rows, sizes, weights, name, mask)
        chosen = permute(out, place, entry[:, None]).reshape(num_rows, entries, -1)
        if beside.gate is None:
            return jnp.sum(chosen, axis=1)
        return jnp.sum(chosen.astype(beside.gate.dtype) * beside.gate[..., None], axis=1).astype(rows.dtype)

    def capacity(self, train: bool = True) -> int:
        """T: all tokens of a group may go to one expert."""
        return self.moe.group_size

    def nominal_capacity(self, train: bool = True) -> Fraction:
        """T."""
        return Fraction(self.moe.group_size)

    def random_drop_fraction(self, train: bool = True) -> float:
        """0, unless `moe.exchange_bound` is set."""
        return 0.0
