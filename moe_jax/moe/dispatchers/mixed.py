"""The dispatcher of Soft MoE: all tokens are mixed into every slot, and all slots into every token."""

from typing import ClassVar, Literal

import jax.numpy as jnp

from moe_jax.moe.dispatchers.buffers import through_experts
from moe_jax.moe.dispatchers.dispatcher import Dispatcher
from moe_jax.moe.dropout import token_noise
from moe_jax.moe.wires import slot_wires
from moe_jax.parallel.collectives import sum_over, varying
from moe_jax.parallel.mesh import TENSOR


class Mixed(Dispatcher):
    """Slots are weighted means of tokens and tokens weighted means of slots, in the weights' precision (Puigcerver et
    al. 2023, equations 1 and 2). Nothing is dropped.
    """

    # To sum the tokens would take the gradients of both [T, S] weights over the wire too.
    splits: ClassVar[Literal["tokens", "slots"]] = "slots"

    def __call__(self, x, routing, experts, context):
        """See `Dispatcher.__call__`."""
        into_slots, into_tokens = routing.mixing
        slots = jnp.einsum("gts,gtd->gsd", into_slots, x.astype(into_slots.dtype), precision="highest")
        buffers = varying(slots.astype(x.dtype), [TENSOR])
        drops = self.moe.expert_dropout and context.keys is not None
        noise = token_noise(context.keys, buffers.shape[1]) if drops else None
        out = sum_over(through_experts(buffers, experts, context, self.moe, noise), [TENSOR])
        y = jnp.einsum("gts,gsd->gtd", into_tokens, out.astype(into_tokens.dtype), precision="highest")
        return y.astype(x.dtype), routing.wanted

    def wires(self, devices, groups, remat):
        """See `Dispatcher.wires`."""
        return slot_wires(self.moe, groups, self.capacity(), remat)
