"""The MoE layer: a router decides, a dispatcher carries, shared experts see every token, and sums leave as values."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from moe_jax.config.schema import MoEConfig
from moe_jax.moe.context import Context
from moe_jax.moe.dispatchers import dispatcher_of
from moe_jax.moe.feed_forward import Experts, FeedForward
from moe_jax.moe.observe import observe
from moe_jax.moe.routers import ROUTERS
from moe_jax.moe.sums import Sums
from moe_jax.parallel.collectives import sum_parts, varying
from moe_jax.parallel.mesh import TENSOR
from moe_jax.parallel.sharding import gather, param


class MoELayer(nnx.Module):
    """Routed experts and, beside them, shared ones. Call it inside `shard_map`."""

    def __init__(
        self, d_model: int, moe: MoEConfig, init: nnx.Initializer, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ):
        self.moe = moe
        self.router = ROUTERS[moe.router](d_model, moe, init, rngs, dtype)
        self.experts = Experts(
            moe.num_experts, d_model, moe.d_ff, moe.activation, init, rngs, dtype, bias=moe.expert_bias
        )
        self.shared = (
            FeedForward(d_model, moe.shared_d_ff, moe.activation, init, rngs, dtype) if moe.shared_d_ff else None
        )
        self.shared_gate = param(rngs, (d_model, 1), ("embed", None), init, dtype) if moe.shared_gate else None

    def __call__(self, x: Float[Array, "B L D"], context: Context, train: bool) -> tuple[Float[Array, "B L D"], Sums]:
        """The output, to be added to the residual stream, and sums over this device's tokens.

        A token whose every choice was dropped gets zeros from the routed experts. `train` picks the capacity factor,
        and for a router that chooses differently in training (sinkhorn) how it chooses.
        """
        dispatcher, shape = dispatcher_of(self.moe), x.shape
        groups = x.reshape(-1, self.moe.group_size, x.shape[-1])
        in_groups = lambda a: a.reshape(-1, self.moe.group_size)
        context = context._replace(
            ids=in_groups(context.ids),
            valid=in_groups(context.valid),
            place=None if context.place is None else in_groups(context.place),
            train=train,
            capacity=dispatcher.capacity(train),
        )
        routing = self.router(groups, context)
        # From here on every device along `tensor` computes with its own part of F. The backward pass adds up gradients
        # where this is declared: those of the tokens, which are fewer than the slots.
        x = varying(groups, [TENSOR]) if dispatcher.splits == "tokens" else groups
        y, kept = dispatcher(x, routing, self.experts, context)
        parts = [y]
        if routing.identity_gate is not None:
            parts.append((groups * routing.identity_gate[..., None]).astype(y.dtype))
        if self.shared is not None:
            shared = self.shared(varying(x, [TENSOR]))
            if self.shared_gate is not None:
                shared = shared * jax.nn.sigmoid(groups @ gather(self.shared_gate, groups.dtype))
            parts.append(shared)
        y = sum_parts(parts, TENSOR)
        # A choice without a slot adds 0 * gate, which XLA may simplify to 0 also where the gate is NaN.
        lost = jnp.any(jnp.isnan(routing.gate), axis=-1, keepdims=True)
        return jnp.where(lost, jnp.nan, y).reshape(shape), observe(self.moe, routing, kept, shape[0])
