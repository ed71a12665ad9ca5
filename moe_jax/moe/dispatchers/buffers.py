"""Through the experts and back: the exchange of expert buffers over the mesh, shared by all dispatchers with slots."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from moe_jax.config.schema import MoEConfig
from moe_jax.moe.context import Context
from moe_jax.moe.dropout import hidden_mask
from moe_jax.moe.feed_forward import Experts
from moe_jax.parallel.exchange import from_experts, to_experts

DISPATCHED, RETURNED = EXCHANGED = ("dispatched", "returned")  # checkpoint names of the buffers that crossed the mesh


def through_experts(
    buffers: Float[Array, "G S D"], experts: Experts, context: Context, moe: MoEConfig
) -> Float[Array, "G S D"]:
    """What the experts make of the slots, as parts of a sum over `tensor`.

    The slots go to their experts, through them, and back, in `moe.exchange_chunks` pieces of C one after another, so
    that one piece may travel while the experts work on another.

    With `moe.exchange_dtype` these parts are rounded on the way, before their sum: with bfloat16 this is off by at
    most 2^-8 times the sum of the parts' magnitudes. docs/parallelism.md says what adding first would cost and gain.
    """
    chunks = moe.exchange_chunks
    wire = moe.exchange_dtype or buffers.dtype
    weights = experts.gathered(buffers.dtype)
    by_expert = buffers.reshape(buffers.shape[0], moe.num_experts, -1, buffers.shape[-1])
    masks: Sequence[Array | None] = [None] * chunks
    if moe.expert_dropout and context.keys is not None:
        mask = hidden_mask(context.keys, moe.expert_dropout, by_expert.shape[2], weights)
        masks = jnp.array_split(mask, chunks, axis=2)
    returned = []
    for chunk, chunk_mask in zip(jnp.array_split(by_expert.astype(wire), chunks, axis=2), masks, strict=True):
        dispatched = checkpoint_name(to_experts(chunk), DISPATCHED)
        out = experts(dispatched.astype(buffers.dtype), weights, chunk_mask)
        returned.append(checkpoint_name(from_experts(out.astype(wire)), RETURNED))
    return jnp.concatenate(returned, axis=2).astype(buffers.dtype).reshape(buffers.shape)
