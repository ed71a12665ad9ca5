"""The MoE layer: the way of a token through router, plan, dispatch, exchange, experts, exchange and combine."""

import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from moe_jax.config.capacity import capacity
from moe_jax.config.schema import MoEConfig
from moe_jax.moe.balance import sequence_balance
from moe_jax.moe.dispatch import DISPATCHERS
from moe_jax.moe.dropout import hidden_mask
from moe_jax.moe.feed_forward import Experts, FeedForward
from moe_jax.moe.plan import make_plan
from moe_jax.moe.router import TokenInfo
from moe_jax.moe.routers import ROUTERS
from moe_jax.moe.routers.soft import Soft, mix_into_slots, mix_into_tokens
from moe_jax.moe.stats import RoutingSums, routing_sums, soft_sums
from moe_jax.parallel.collectives import sum_over, varying
from moe_jax.parallel.exchange import from_experts, to_experts
from moe_jax.parallel.mesh import TENSOR

DISPATCHED, RETURNED = EXCHANGED = ("dispatched", "returned")  # checkpoint names of the buffers that crossed the mesh


class MoELayer(nnx.Module):
    """Routed experts and, beside them, shared ones. Call it inside `shard_map`."""

    def __init__(self, d_model: int, moe: MoEConfig, init: nnx.Initializer, rngs: nnx.Rngs, dtype=jnp.float32):
        self.moe = moe
        self.router = ROUTERS[moe.router](d_model, moe, init, rngs, dtype)
        self.experts = Experts(moe.num_experts, d_model, moe.d_ff, moe.activation, init, rngs, dtype)
        self.shared = (
            FeedForward(d_model, moe.shared_d_ff, moe.activation, init, rngs, dtype) if moe.shared_d_ff else None
        )

    def __call__(
        self, x: Float[Array, "B L D"], info: TokenInfo, train: bool
    ) -> tuple[Float[Array, "B L D"], RoutingSums]:
        """Output to be added to the residual stream (zeros for a token whose every choice was dropped), and statistics.

        `train` picks the capacity factor, and how experts are chosen where that differs (sinkhorn).
        """
        moe = self.moe
        factor = moe.capacity_factor if train else moe.eval_capacity_factor
        slots = capacity(factor, moe.top_k, moe.group_size, moe.num_experts)
        groups = x.reshape(-1, moe.group_size, x.shape[-1])
        in_groups = lambda a: a.reshape(-1, moe.group_size)
        info = info._replace(ids=in_groups(info.ids), valid=in_groups(info.valid), train=train, capacity=slots)
        y, sums = (self._mix if isinstance(self.router, Soft) else self._dispatch)(groups, info, x.shape[0])
        return y.reshape(x.shape), sums

    def _dispatch(
        self, groups: Float[Array, "G T D"], info: TokenInfo, sequences: int
    ) -> tuple[Float[Array, "G T D"], RoutingSums]:
        """Tokens move to experts of their own and back."""
        moe = self.moe
        routing = self.router(groups, info)
        plan = make_plan(routing, info.capacity, moe.drop_order, moe.null_experts)

        # From here to the sum over `tensor` every device of that axis works on its part of F. Said of the tokens, here,
        # the backward pass sums their gradients over the axis; said later, it would sum those of the larger buffers.
        groups = varying(groups, [TENSOR])
        dispatcher = DISPATCHERS[moe.dispatcher]
        out = self._exchange(dispatcher.dispatch(groups, plan), info)
        y = dispatcher.combine(out, routing.gate, plan)
        if self.shared is not None:
            y = y + self.shared(groups)
        sums = routing_sums(routing, plan)
        if moe.balance_scope == "sequence":
            losses, counted = sequence_balance(routing, sequences)
            sums = sums._replace(sequence_balance=losses, sequences=counted)
        # A NaN logit is never silent: 0 * NaN, of a choice without a slot, is what the compiler makes of it.
        lost = jnp.any(jnp.isnan(routing.gate), axis=-1, keepdims=True)
        return jnp.where(lost, jnp.nan, sum_over(y, [TENSOR])), sums

    def _mix(
        self, groups: Float[Array, "G T D"], info: TokenInfo, sequences: int
    ) -> tuple[Float[Array, "G T D"], RoutingSums]:
        """Soft MoE: tokens are mixed into slots, and what the experts make of them into tokens."""
        routing = self.router(groups, info)
        # The buffers are what is summed over `tensor`: said of the tokens, it would be the gradients of T * S weights.
        buffers = varying(mix_into_slots(groups, routing), [TENSOR])
        y = mix_into_tokens(sum_over(self._exchange(buffers, info), [TENSOR]), routing)
        if self.shared is not None:
            y = y + sum_over(self.shared(varying(groups, [TENSOR])), [TENSOR])
        return y, soft_sums(routing)

    def _exchange(self, buffers: Float[Array, "G S D"], info: TokenInfo) -> Float[Array, "G S D"]:
        """What the experts make of the slots: there, through, and back, `moe.exchange_chunks` pieces of C in turn."""
        moe, chunks = self.moe, self.moe.exchange_chunks
        wire = moe.exchange_dtype or buffers.dtype
        weights = self.experts.gathered(buffers.dtype)
        by_expert = buffers.reshape(buffers.shape[0], moe.num_experts, info.capacity, -1)
        masks = [None] * chunks
        if moe.expert_dropout and info.keys is not None:
            mask = hidden_mask(info.keys, moe.expert_dropout, info.capacity, weights)
            masks = jnp.array_split(mask, chunks, axis=2)
        returned = []
        for chunk, mask in zip(jnp.array_split(by_expert.astype(wire), chunks, axis=2), masks, strict=True):
            dispatched = checkpoint_name(to_experts(chunk), DISPATCHED)
            out = self.experts(dispatched.astype(buffers.dtype), weights, mask)
            returned.append(checkpoint_name(from_experts(out.astype(wire)), RETURNED))
        return jnp.concatenate(returned, axis=2).astype(buffers.dtype).reshape(buffers.shape)
