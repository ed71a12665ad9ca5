"""Rotary position embedding, and the ways to stretch it beyond the length that a model was trained on."""

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int

from moe_jax.config.schema import AttentionConfig

Frequencies = Float64[np.ndarray, " pairs"]  # radians a position


def rotate(
    x: Float[Array, "B L H N"], positions: Int[Array, "L"] | Int[Array, "B L"], attention: AttentionConfig
) -> Float[Array, "B L H N"]:
    """Turns pair n of the first `rope_fraction` of each head by position * theta^(-2n/size) (Su et al. 2021).

    The pairs are (n, n + size/2), or with `rope_interleaved` (2n, 2n + 1). `rope_scaling` changes the frequencies, and
    YaRN multiplies what it turns by its attention factor.
    """
    size = turned(x.shape[-1], attention)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    angle = positions.astype(dtype)[..., None, None] * jnp.asarray(frequencies(size, attention), dtype)
    factor = attention_factor(attention)
    cos, sin = jnp.cos(angle) * factor, jnp.sin(angle) * factor
    turning = x[..., :size].astype(dtype)
    if attention.rope_interleaved:
        pairs = turning.reshape(*x.shape[:-1], size // 2, 2)
        first, second = pairs[..., 0], pairs[..., 1]
        out = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1).reshape(turning.shape)
    else:
        first, second = jnp.split(turning, 2, axis=-1)
        out = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return jnp.concatenate([out.astype(x.dtype), x[..., size:]], axis=-1)


def turned(head_dim: int, attention: AttentionConfig) -> int:
    """How many dimensions of a head positions turn."""
    return int(head_dim * attention.rope_fraction)


def frequencies(size: int, attention: AttentionConfig) -> Frequencies:
    """The size / 2 frequencies of the pairs, scaled."""
    plain = attention.rope_theta ** (-np.arange(0, size, 2) / size)
    return SCALINGS[attention.rope_scaling](plain, size, attention)


def attention_factor(attention: AttentionConfig) -> float:
    """What turned queries and keys are multiplied by: 1 but for YaRN, there 0.1 ln(factor) + 1 unless it is given."""
    if attention.rope_scaling != "yarn":
        return 1.0
    return attention.rope_attention_factor or yarn_magnitude(attention.rope_factor)


def yarn_magnitude(factor: float, weight: float = 1.0) -> float:
    """0.1 * weight * ln(factor) + 1 (YaRN, Peng et al. 2023, equation 22; `weight` is DeepSeek's mscale)."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1


def _linear(plain: Frequencies, size: int, attention: AttentionConfig) -> Frequencies:
    """All positions are divided by the factor (Chen et al. 2023)."""
    return plain / attention.rope_factor


def _llama3(plain: Frequencies, size: int, attention: AttentionConfig) -> Frequencies:
    """A frequency is kept where it turns `rope_high_frequency` times or more in the original length, divided by the
    factor where it turns `rope_low_frequency` times or less, and a mean of both in between (Llama 3.1, the published
    model code).
    """
    turns = attention.rope_original_length * plain / (2 * np.pi)
    low, high = attention.rope_low_frequency, attention.rope_high_frequency
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return plain * (kept + (1 - kept) / attention.rope_factor)


def _yarn(plain: Frequencies, size: int, attention: AttentionConfig) -> Frequencies:
    """Divided by the factor from the dimension on that turns `rope_beta_slow` times in the original length, kept up to
    the one that turns `rope_beta_fast` times, with a linear ramp in between (YaRN, section 3.2).
    """

    def dimension(turns: float) -> float:
        by_length = math.log(attention.rope_original_length / (turns * 2 * math.pi))
        return size * by_length / (2 * math.log(attention.rope_theta))

    first, last = dimension(attention.rope_beta_fast), dimension(attention.rope_beta_slow)
    if attention.rope_truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    last = last if last != first else last + 0.001
    divided = np.clip((np.arange(size // 2) - first) / (last - first), 0, 1)
    return plain * (1 - divided) + plain / attention.rope_factor * divided


SCALINGS: dict[str, Callable[[Frequencies, int, AttentionConfig], Frequencies]] = {
    "": lambda plain, size, attention: plain,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
