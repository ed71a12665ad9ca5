"""Selecting experts by score, and the gates of those selected: what the routers that choose for each token share."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from moe_jax.config.schema import MoEConfig
from moe_jax.moe.routing import Choices, pick


def top_k_choices(
    logits: Float[Array, "G T A"], log_scores: Float[Array, "G T A"], moe: MoEConfig, bias: Float[Array, "A"] | None
) -> Choices:
    """The K best experts of each token, with their scores as gates.

    Experts are selected by logits, which scores increase with, since scores can underflow to equal zeros; with a
    balance `bias`, by score plus bias (Wang et al. 2024, equation 3), which gates and probabilities never see. With
    limited groups, both take place within the best groups.
    """
    scores = jnp.exp(log_scores)
    biased = scores if bias is None else scores + bias
    ranked = logits if bias is None else biased
    if moe.expert_groups > 1:
        by, best = (biased, 2) if moe.group_score == "top2" else (ranked, 1)
        allowed = in_best_groups(lax.stop_gradient(by), moe.expert_groups, moe.top_groups, best)
        ranked = jnp.where(allowed, ranked, -jnp.inf)
    expert = best_experts(ranked, moe.top_k)
    return Choices(
        expert, gates(pick(log_scores, expert), moe), probabilities=jax.nn.softmax(log_scores), scores=scores
    )


def best_experts(ranked: Float[Array, "G T A"], k: int) -> Int[Array, "G T K"]:
    """The k experts that rank highest for each token, best first; of equal ones the lower index."""
    return lax.top_k(lax.stop_gradient(ranked), k)[1]


def gates(log_scores: Float[Array, "G T K"], moe: MoEConfig) -> Float[Array, "G T K"]:
    """Gates from the logarithms of the chosen scores: raw, or divided by their sum; times `moe.routed_scaling`."""
    gate = jax.nn.softmax(log_scores) if moe.normalize_gates else jnp.exp(log_scores)
    return gate * moe.routed_scaling


def in_best_groups(scores: Float[Array, "G T E"], groups: int, top_groups: int, best: int) -> Bool[Array, "G T E"]:
    """Which experts are in the `top_groups` best of each token's `groups` expert groups, equal runs of consecutive
    experts: then a token travels to few devices or nodes.

    An expert group counts by the sum of its `best` highest scores: 1 in DeepSeek-V2 (section 2.2.2), 2 in DeepSeek-V3
    (section 2.1.2, node-limited routing). Of equal groups the first wins.
    """
    by_group = scores.reshape(*scores.shape[:2], groups, -1)
    group_score = jnp.sum(lax.top_k(by_group, best)[0], axis=-1)
    _, chosen = lax.top_k(group_score, top_groups)
    allowed = jnp.any(jax.nn.one_hot(chosen, groups, dtype=bool), axis=-2)
    return jnp.repeat(allowed, by_group.shape[-1], axis=-1)
