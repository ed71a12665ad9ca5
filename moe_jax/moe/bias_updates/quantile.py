"""Quantile balancing: the bias that would have balanced the batch just seen (Kimi K3 report, 2.3.3 and appendix D)."""

import jax
import jax.numpy as jnp

BINS = 1000  # equal parts of [min(bias) - 1, max(bias) + 1], where the margins of scores in [0, 1] lie


def margins(observed):
    """[A, BINS]: how many tokens have each margin, the (K+1)-th largest biased score less the expert's own score."""
    routing = observed.routing
    num_experts, k = routing.scores.shape[-1], routing.expert.shape[-1]
    border = jax.lax.top_k(routing.scores + routing.bias, min(k + 1, num_experts))[0][..., -1:]
    low, width = _bins(routing.bias)
    place = jnp.clip((border - routing.scores - low) / width, 0, BINS - 1).astype(jnp.int32)
    counted = routing.valid[..., None].astype(routing.scores.dtype)
    return jnp.zeros((num_experts, BINS), counted.dtype).at[jnp.arange(num_experts), place].add(counted)


def to_quantile(bias, counts, moe):
    """[*M, A]: `moe.bias_rate` of the way to the K / A quantile of each expert's margins, less their mean."""
    (low, width), below = _bins(bias), jnp.cumsum(counts, axis=-1)
    wanted = moe.top_k / bias.shape[-1] * below[..., -1:]
    found = jnp.argmax(below >= wanted, axis=-1, keepdims=True)
    surplus = jnp.take_along_axis((below - wanted) / jnp.maximum(counts, 1), found, axis=-1)
    quantile = low + width * (found + 1 - surplus)[..., 0]  # interpolated within its bin
    change = quantile - jnp.mean(quantile, axis=-1, keepdims=True) - bias
    return bias + moe.bias_rate * jnp.where(below[..., -1] > 0, change, 0)


def _bins(bias):
    low, high = jnp.min(bias, axis=-1, keepdims=True) - 1, jnp.max(bias, axis=-1, keepdims=True) + 1
    return low, (high - low) / BINS
