"""Quantile balancing: the bias with which the batch just seen would have been balanced (Kimi K3 report, 2.3.3)."""

import jax
import jax.numpy as jnp

BINS = 1000  # equal parts of [min(bias) - 1, max(bias) + 1], where the margins of scores in [0, 1] lie (appendix D)


def margins(observed):
    """[A, BINS]: how often the margin of each expert falls into each bin. A token's margin is the bias with which it
    would be about to choose the expert: its (K+1)-th largest biased score less the expert's own score.
    """
    routing = observed.routing
    border = jax.lax.top_k(routing.scores + routing.bias, routing.expert.shape[-1] + 1)[0][..., -1:]
    low, width = _bins(routing.bias)
    place = jnp.clip((border - routing.scores - low) / width, 0, BINS - 1).astype(jnp.int32)
    counts = jnp.zeros((place.shape[-1], BINS), routing.scores.dtype)
    return counts.at[jnp.arange(place.shape[-1]), place].add(routing.valid[..., None].astype(counts.dtype))


def to_quantile(bias, counts, moe):
    """[*M, A]: `moe.bias_rate` of the way (the report: 1) to the K / A quantile of each expert's margins, interpolated
    within its bin, less the mean over experts.
    """
    (low, width), below = _bins(bias), jnp.cumsum(counts, axis=-1)
    wanted = moe.top_k / bias.shape[-1] * below[..., -1:]
    found = jnp.argmax(below >= wanted, axis=-1, keepdims=True)
    surplus = jnp.take_along_axis((below - wanted) / jnp.maximum(counts, 1), found, axis=-1)
    quantile = (low + width * (found + 1 - surplus))[..., 0]
    change = quantile - jnp.mean(quantile, axis=-1, keepdims=True) - bias
    return bias + moe.bias_rate * jnp.where(below[..., -1] > 0, change, 0)


def _bins(bias):
    low, high = jnp.min(bias, axis=-1, keepdims=True) - 1, jnp.max(bias, axis=-1, keepdims=True) + 1
    return low, (high - low) / BINS
