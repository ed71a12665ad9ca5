"""Dispatchers that give every choice a slot in its expert's buffer, or drop it."""

import abc
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

from moe_jax.moe.context import Context
from moe_jax.moe.dispatchers.buffers import through_experts
from moe_jax.moe.dispatchers.dispatcher import Dispatcher
from moe_jax.moe.dispatchers.once import through_slots_there
from moe_jax.moe.dropout import token_noise
from moe_jax.moe.levels import levels_of
from moe_jax.moe.permute import permute
from moe_jax.moe.plan import Plan, make_plan
from moe_jax.moe.wires import level_wires, slot_wires


class Slots(Dispatcher):
    """The way that these dispatchers share; they differ in how rows move into slots and out of them."""

    def __call__(self, x, routing, experts, context):
        """See `Dispatcher.__call__`."""
        plan = make_plan(routing, context.capacity, self.moe.drop_order, self.moe.null_experts)
        if self.moe.exchange_unique:
            return through_slots_there(x, routing, plan, experts, context, self.moe)
        buffers = self.fill(x, routing.input_gate, plan)
        out = through_experts(buffers, experts, context, self.moe, self._noise(x.shape[1], plan, context))
        return self.combine(out, routing.gate, plan), plan.kept()

    def wires(self, devices, groups, remat):
        """See `Dispatcher.wires`."""
        if self.moe.exchange_unique:
            levels = levels_of(self.moe, devices, groups * self.moe.group_size, groups * self.capacity())
            return level_wires(self.moe, levels, remat)
        return slot_wires(self.moe, groups, self.capacity(), remat)

    def _noise(self, tokens: int, plan: Plan, context: Context) -> UInt32[Array, "G S w"] | None:
        """The noise of the slots' tokens, for expert dropout."""
        if not self.moe.expert_dropout or context.keys is None:
            return None
        token = plan.choice_in_slot // plan.slot_of_choice.shape[-1]
        take = lambda noise, token: jnp.take(noise, token, axis=0, mode="fill", fill_value=0)
        return jax.vmap(take)(token_noise(context.keys, tokens), token)

    @abc.abstractmethod
    def fill(
        self, x: Float[Array, "G T D"], input_gate: Float[Array, "G T K"] | None, plan: Plan
    ) -> Float[Array, "G S D"]:
        """The token of each slot, times the input gate of its choice; zeros in empty slots."""

    @abc.abstractmethod
    def combine(self, out: Float[Array, "G S D"], gate: Float[Array, "G T K"], plan: Plan) -> Float[Array, "G T D"]:
        """Each token's sum of its slots' rows times its gates, in the gates' precision; zeros if it has none."""


class Einsum(Slots):
    """Products with one-hot matrices of size T x S (GShard, Mesh TensorFlow): the oracle to read and to test against.

    Its matmuls cost as much as experts of hidden size C * E / 2 would: several times the experts' own for many experts.
    """

    def fill(self, x, input_gate, plan):
        """See `Slots.fill`."""
        highest = jax.lax.Precision.HIGHEST
        if input_gate is None:
            return jnp.einsum("gtks,gtd->gsd", _slots_of_tokens(plan, x.dtype), x, precision=highest)
        weights = _slots_of_tokens(plan, input_gate.dtype) * input_gate[..., None]
        return jnp.einsum("gtks,gtd->gsd", weights, x.astype(input_gate.dtype), precision=highest).astype(x.dtype)

    def combine(self, out, gate, plan):
        """See `Slots.combine`."""
        weights = _slots_of_tokens(plan, gate.dtype) * gate[..., None]
        highest = jax.lax.Precision.HIGHEST
        return jnp.einsum("gtks,gsd->gtd", weights, out.astype(gate.dtype), precision=highest).astype(out.dtype)


class Capacity(Slots):
    """Gathers in both directions and in both passes: nothing larger than the buffers themselves exists."""

    def fill(self, x, input_gate, plan):
        """See `Slots.fill`."""
        groups, tokens, _ = x.shape
        k = plan.slot_of_choice.shape[-1]
        token_in_slot = jnp.where(plan.choice_in_slot < tokens * k, plan.choice_in_slot // k, tokens)
        buffers = jax.vmap(permute)(x, token_in_slot, plan.slot_of_choice)
        if input_gate is None:
            return buffers
        of_choice = lambda a: a.reshape(groups, tokens * k, 1)
        gate = jax.vmap(permute)(of_choice(input_gate), plan.choice_in_slot, of_choice(plan.slot_of_choice))
        return (buffers.astype(gate.dtype) * gate).astype(x.dtype)

    def combine(self, out, gate, plan):
        """See `Slots.combine`."""
        groups, tokens, k = gate.shape
        slot = plan.slot_of_choice.reshape(groups, tokens * k)
        chosen = jax.vmap(permute)(out, slot, plan.choice_in_slot[..., None])
        chosen = chosen.reshape(groups, tokens, k, -1).astype(gate.dtype)
        return jnp.sum(chosen * gate[..., None], axis=2).astype(out.dtype)


def _slots_of_tokens(plan: Plan, dtype: Any) -> Float[Array, "G T K S"]:
    return jax.nn.one_hot(plan.slot_of_choice, plan.choice_in_slot.shape[-1], dtype=dtype)
