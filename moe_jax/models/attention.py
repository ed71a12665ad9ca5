"""Causal self-attention: rotary positions, grouped queries, and a choice of implementations."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from moe_jax.config.schema import ModelConfig
from moe_jax.parallel.collectives import varying
from moe_jax.parallel.mesh import TENSOR
from moe_jax.parallel.sharding import gather, param

MASKED = -1e30  # a score that no softmax sees; finite, so that a row without any key stays defined


def rotate(x: Float[Array, "B L H N"], theta: float) -> Float[Array, "B L H N"]:
    """Rotary position embedding (Su et al. 2021): turns the pair (x[n], x[n + N/2]) by position * theta^(-2n/N)."""
    length, size = x.shape[1], x.shape[-1]
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    frequency = theta ** (-jnp.arange(0, size, 2, dtype=dtype) / size)
    angle = jnp.arange(length, dtype=dtype)[:, None, None] * frequency
    low, high = jnp.split(x.astype(dtype), 2, axis=-1)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1).astype(x.dtype)


def xla_attention(
    q: Float[Array, "B L H N"],
    k: Float[Array, "B L J N"],
    v: Float[Array, "B L J N"],
    documents: Int[Array, "B L"] | None,
    chunk: int,
) -> Float[Array, "B L H N"]:
    """Plain attention, `chunk` query positions at a time: scores take B * H * chunk * L floats, recomputed in the
    backward pass. J key-value heads serve H / J query heads each. With `documents`, only keys of the same one count.
    """
    batch, length, heads, size = q.shape
    grouped = (batch, length, k.shape[2], heads // k.shape[2], size)

    def attend(start: int | Int[Array, ""], q: Float[Array, "B Q J R N"], own: Int[Array, "B Q"] | None):
        scores = jnp.einsum("bqjrn,bkjn->bjrqk", q, k, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))
        seen = (start + jnp.arange(q.shape[1]))[:, None] >= jnp.arange(length)
        if own is not None:
            seen = seen & (own[:, None, None, :, None] == documents[:, None, None, None, :])
        weights = jax.nn.softmax(jnp.where(seen, scores * size**-0.5, MASKED)).astype(v.dtype)
        return jnp.einsum("bjrqk,bkjn->bqjrn", weights, v)

    q = q.reshape(grouped)
    if length <= chunk:
        return attend(0, q, documents).reshape(batch, length, heads, size)
    pieces = lambda x: None if x is None else x.reshape(batch, length // chunk, chunk, *x.shape[2:]).swapaxes(0, 1)
    starts = jnp.arange(0, length, chunk)
    out = lax.map(lambda args: jax.checkpoint(attend)(*args), (starts, pieces(q), pieces(documents)))
    return out.swapaxes(0, 1).reshape(batch, length, heads, size)


def cudnn_attention(q, k, v, documents, chunk):
    """cuDNN's fused attention (bfloat16, NVIDIA only); document masks are not in its vocabulary."""
    if documents is not None:
        raise ValueError(
            "model.attention='cudnn' cannot mask documents: set data.mask_documents=False or model.attention='xla'"
        )
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")


ATTENTION: dict[str, Callable] = {"xla": xla_attention, "cudnn": cudnn_attention}


class Attention(nnx.Module):
    """Heads are split over the mesh axis `tensor`; the output is this device's part of a sum over it."""

    def __init__(self, model: ModelConfig, init: nnx.Initializer, rngs: nnx.Rngs, dtype):
        self.model = model
        queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
        self.q = param(rngs, (model.d_model, queries), ("embed", "heads"), init, dtype)
        self.k = param(rngs, (model.d_model, keys), ("embed", "heads"), init, dtype)
        self.v = param(rngs, (model.d_model, keys), ("embed", "heads"), init, dtype)
        self.out = param(rngs, (queries, model.d_model), ("heads_in", None), init, dtype)

    def __call__(self, x: Float[Array, "B L D"], documents: Int[Array, "B L"] | None) -> Float[Array, "B L D"]:
        """Attends to earlier positions (of the same document, where `documents` numbers them)."""
        model = self.model
        x = varying(x, [TENSOR])
        q, k, v = (
            (x @ gather(weight, x.dtype)).reshape(*x.shape[:2], -1, model.head_dim)
            for weight in (self.q, self.k, self.v)
        )
        q, k = rotate(q, model.rope_theta), rotate(k, model.rope_theta)
        heads = ATTENTION[model.attention](q, k, v, documents, model.attention_chunk)
        return heads.reshape(*x.shape[:2], -1) @ gather(self.out, x.dtype)
