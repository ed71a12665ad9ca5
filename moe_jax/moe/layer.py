"""The MoE layer: the way of a token through router, plan, dispatch, exchange, experts, exchange and combine."""

import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from moe_jax.config.capacity import capacity
from moe_jax.config.schema import MoEConfig
from moe_jax.moe.balance import sequence_balance
from moe_jax.moe.dispatch import DISPATCHERS
from moe_jax.moe.feed_forward import Experts, FeedForward
from moe_jax.moe.plan import make_plan
from moe_jax.moe.router import TokenInfo
from moe_jax.moe.routers import ROUTERS
from moe_jax.moe.stats import RoutingSums, routing_sums
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
        groups = x.reshape(-1, moe.group_size, x.shape[-1])
        in_groups = lambda a: a.reshape(-1, moe.group_size)
        info = info._replace(ids=in_groups(info.ids), valid=in_groups(info.valid), train=train)
        routing = self.router(groups, info)
        factor = moe.capacity_factor if train else moe.eval_capacity_factor
        slots = capacity(factor, moe.top_k, moe.group_size, moe.num_experts)
        plan = make_plan(routing, slots, moe.drop_order, moe.null_experts)

        # From here to the sum over `tensor` every device of that axis works on its part of F. Said of the tokens, here,
        # the backward pass sums their gradients over the axis; said later, it would sum those of the larger buffers.
        groups = varying(groups, [TENSOR])
        dispatcher = DISPATCHERS[moe.dispatcher]
        buffers = dispatcher.dispatch(groups, plan).reshape(groups.shape[0], moe.num_experts, slots, -1)
        out = self._exchange(buffers)
        y = dispatcher.combine(out.reshape(groups.shape[0], moe.num_experts * slots, -1), routing.gate, plan)
        if self.shared is not None:
            y = y + self.shared(groups)
        sums = routing_sums(routing, plan)
        if moe.balance_scope == "sequence":
            losses, sequences = sequence_balance(routing, x.shape[0])
            sums = sums._replace(sequence_balance=losses, sequences=sequences)
        return sum_over(y, [TENSOR]).reshape(x.shape), sums

    def _exchange(self, buffers: Float[Array, "G E C D"]) -> Float[Array, "G E C D"]:
        """What the experts make of the buffers: there, through, and back, `moe.exchange_chunks` pieces of C in turn."""
        wire = self.moe.exchange_dtype or buffers.dtype
        weights = self.experts.gathered(buffers.dtype)
        returned = []
        for chunk in jnp.array_split(buffers.astype(wire), self.moe.exchange_chunks, axis=2):
            dispatched = checkpoint_name(to_experts(chunk), DISPATCHED)
            out = self.experts(dispatched.astype(buffers.dtype), weights)
            returned.append(checkpoint_name(from_experts(out.astype(wire)), RETURNED))
        return jnp.concatenate(returned, axis=2).astype(buffers.dtype)
