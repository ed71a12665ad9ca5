"""Cross-entropy whose logits never exist all at once."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from moe_jax.parallel.collectives import index_over, max_over, sum_over, varying
from moe_jax.parallel.mesh import TENSOR


def cross_entropy(
    x: Float[Array, "B L D"],
    head: Float[Array, "D v"],
    targets: Int[Array, "B L"],
    scored: Bool[Array, "B L"],
    chunk: int,
) -> Float[Array, "B"]:
    """Negative log-likelihood in nats, summed over the scored positions of each sequence. Inside `shard_map`.

    `chunk` positions at a time, recomputed in the backward pass. `head` holds this device's part of the vocabulary, V
    cut over the mesh axis `tensor`; the softmax over all of V costs two sums of one float a position.
    """
    x = varying(x, [TENSOR])
    batch, length, _ = x.shape

    def one(args):
        x, targets, scored = args
        logits = jnp.matmul(x, head, preferred_element_type=jnp.promote_types(x.dtype, jnp.float32))
        own = targets[..., None] - index_over([TENSOR]) * logits.shape[-1] == jnp.arange(logits.shape[-1])
        highest = max_over(jnp.max(lax.stop_gradient(logits), axis=-1), [TENSOR])
        total = sum_over(jnp.sum(jnp.exp(logits - highest[..., None]), axis=-1), [TENSOR])
        target = sum_over(jnp.sum(jnp.where(own, logits, 0), axis=-1), [TENSOR])
        return jnp.sum(jnp.where(scored, jnp.log(total) + highest - target, 0), axis=-1)

    if length <= chunk:
        return one((x, targets, scored))
    pieces = lambda a: a.reshape(batch, length // chunk, chunk, *a.shape[2:]).swapaxes(0, 1)
    return jnp.sum(lax.map(jax.checkpoint(one), (pieces(x), pieces(targets), pieces(scored))), axis=0)
