"""Implementations of softmax(Q K^T) V, by their name in `attention.kernel`."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from moe_jax.config.rules import ConfigError, divides
from moe_jax.config.schema import RunConfig
from moe_jax.models.attention.mask import Mask

MASKED = -1e30  # a score that no softmax sees; finite, so that a row without any key stays defined


def xla_attention(
    q: Float[Array, "B Q H N"],
    k: Float[Array, "B P J N"],
    v: Float[Array, "B P J W"],
    mask: Mask,
    chunk: int,
    scale: float = 0.0,
    sinks: Float[Array, "H"] | None = None,
) -> Float[Array, "B Q H W"]:
    """Plain attention, `chunk` query positions at a time: scores take B * H * chunk * P floats, recomputed in the
    backward pass. J key-value heads serve H / J query heads each. `scale` multiplies scores, but not sinks; if it is 0,
    1 / sqrt(N) does.
    """
    batch, length, heads, size = q.shape
    grouped = (batch, length, k.shape[2], heads // k.shape[2], size)

    def attend(q: Float[Array, "B Q J R N"], mask: Mask):
        scores = jnp.einsum("bqjrn,bkjn->bjrqk", q, k, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))
        seen = mask.seen(q.shape[1], k.shape[1])
        scores = scores * (scale or size**-0.5)
        if seen is not None:
            scores = jnp.where(seen if seen.ndim == 2 else seen[:, None, None], scores, MASKED)
        weights = jax.nn.softmax(scores) if sinks is None else _softmax_with_sinks(scores, sinks.reshape(grouped[2:4]))
        return jnp.einsum("bjrqk,bkjn->bqjrn", weights.astype(v.dtype), v)

    q = q.reshape(grouped)
    if length <= chunk:
        return attend(q, mask).reshape(batch, length, heads, -1)

    def attend_from(piece: tuple[Int[Array, ""] | int, Array, Array | None]):
        start, q, documents = piece
        own = dataclasses.replace(mask, start=mask.start + start, query_documents=documents)
        return jax.checkpoint(attend)(q, own)

    whole = length // chunk * chunk
    cut = lambda x: x[:, :whole].reshape(batch, whole // chunk, chunk, *x.shape[2:]).swapaxes(0, 1)
    documents = mask.query_documents
    pieces = jnp.arange(0, whole, chunk), cut(q), None if documents is None else cut(documents)
    out = lax.map(attend_from, pieces).swapaxes(0, 1).reshape(batch, whole, *grouped[2:4], -1)
    if whole < length:
        rest = attend_from((whole, q[:, whole:], None if documents is None else documents[:, whole:]))
        out = jnp.concatenate([out, rest], axis=1)
    return out.reshape(batch, length, heads, -1)


def _softmax_with_sinks(scores: Float[Array, "B J R Q P"], sinks: Float[Array, "J R"]) -> Float[Array, "B J R Q P"]:
    """The softmax over P keys and one sink, whose share goes to no value."""
    sinks = sinks.astype(scores.dtype)[None, :, :, None, None]
    highest = lax.stop_gradient(jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), sinks))
    exponentials = jnp.exp(scores - highest)
    return exponentials / (jnp.sum(exponentials, axis=-1, keepdims=True) + jnp.exp(sinks - highest))


def cudnn_attention(q, k, v, mask, chunk, scale=0.0, sinks=None):
    """cuDNN's fused attention over whole sequences (bfloat16, NVIDIA only); `check_cudnn` says what it cannot do."""
    window = (mask.window - 1, 0) if mask.window else None
    size = v.shape[-1]
    if size < q.shape[-1]:  # the kernel wants one size for all
        v = jnp.pad(v, ((0, 0),) * 3 + ((0, q.shape[-1] - size),))
    return jax.nn.dot_product_attention(
        q, k, v, scale=scale or None, is_causal=mask.causal, local_window_size=window, implementation="cudnn"
    )[..., :size]


def check_xla(run: RunConfig) -> None:
    """Raises ConfigError unless a row comes out even: a rest of its own would be compiled beside the loop."""
    length = run.data.sequence_length
    divides("attention.chunk", min(run.attention.chunk, length), "data.sequence_length", length)


def check_cudnn(run: RunConfig) -> None:
    """Raises ConfigError for what cuDNN's kernel cannot do."""
    if run.model.dtype != "bfloat16":
        raise ConfigError(f"attention.kernel='cudnn' needs model.dtype='bfloat16', not {run.model.dtype!r}: set one")
    if run.data.mask_documents:
        raise ConfigError(
            "data.mask_documents=True with attention.kernel='cudnn', which cannot: use attention.kernel='xla'"
        )
    if run.attention.sinks:
        raise ConfigError("attention.sinks=True with attention.kernel='cudnn', which has none: use 'xla'")


class Kernel(NamedTuple):
    """One implementation."""

    attend: Callable[..., Float[Array, "B Q H N"]]
    check: Callable[[RunConfig], None]
    platform: str = ""  # that it needs; "": any


KERNELS: dict[str, Kernel] = {
    "xla": Kernel(xla_attention, check_xla),
    "cudnn": Kernel(cudnn_attention, check_cudnn, platform="gpu"),
}


def check_platform(kernel: str, platform: str) -> None:
    """Raises ConfigError where the kernel does not run on the platform (`jax.default_backend()`)."""
    needed = KERNELS[kernel].platform
    if needed not in ("", platform):
        anywhere = ", ".join(repr(name) for name, one in KERNELS.items() if not one.platform)
        raise ConfigError(
            f"attention.kernel={kernel!r} runs on {needed} and JAX is on {platform}: use attention.kernel={anywhere}"
        )
