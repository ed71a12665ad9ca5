"""Through the experts and back: the exchange of expert buffers over the mesh, shared by all dispatchers with slots."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, UInt32

from moe_jax.config.schema import MoEConfig
from moe_jax.moe.context import Context
from moe_jax.moe.delivery import DISPATCHED, RETURNED
from moe_jax.moe.dropout import hidden_mask
from moe_jax.moe.feed_forward import Experts, Weights
from moe_jax.parallel.collectives import index_over
from moe_jax.parallel.exchange import from_experts, to_experts
from moe_jax.parallel.mesh import EXPERT


def through_experts(
    buffers: Float[Array, "G S D"],
    experts: Experts,
    context: Context,
    moe: MoEConfig,
    noise: UInt32[Array, "G S w"] | None = None,
) -> Float[Array, "G S D"]:
    """What the experts make of the slots, as parts of a sum over `tensor`.

    The slots go to their experts, through them, and back, in `moe.exchange_chunks` pieces of C one after another, so
    that one piece may travel while the experts work on another. `noise` is that of the slots' tokens, for dropout.

    With `moe.exchange_dtype` these parts are rounded on the way, before their sum: with bfloat16 this is off by at
    most 2^-8 times the sum of the parts' magnitudes. docs/parallelism.md says what adding first would cost and gain.
    """
    chunks = moe.exchange_chunks
    wire = moe.exchange_dtype or buffers.dtype
    weights = experts.gathered(buffers.dtype)
    by_expert = lambda a: a.reshape(a.shape[0], moe.num_experts, -1, a.shape[-1])
    noises: Sequence[Array | None] = [None] * chunks
    if noise is not None:
        noises = jnp.array_split(by_expert(noise), chunks, axis=2)
    returned = []
    for chunk, own in zip(jnp.array_split(by_expert(buffers).astype(wire), chunks, axis=2), noises, strict=True):
        dispatched = checkpoint_name(to_experts(chunk), DISPATCHED)
        mask = None if own is None else _mask(own, weights, moe).astype(buffers.dtype)
        out = experts(dispatched.astype(buffers.dtype), weights, mask)
        returned.append(checkpoint_name(from_experts(out.astype(wire)), RETURNED))
    return jnp.concatenate(returned, axis=2).astype(buffers.dtype).reshape(buffers.shape)


def _mask(noise: UInt32[Array, "G E C w"], weights: Weights, moe: MoEConfig) -> Float[Array, "_ e C f"]:
    noise = checkpoint_name(to_experts(noise), DISPATCHED)
    experts, _, hidden = weights.up.shape
    expert = index_over([EXPERT]) * experts + jnp.arange(experts)
    expert = jnp.broadcast_to(expert[:, None], noise.shape[:-1])
    return hidden_mask(noise, expert, moe.expert_dropout, hidden)
