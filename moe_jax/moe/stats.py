"""Routing statistics. Every device sums over its own tokens; only ratios of global sums are ever looked at.

`RoutingSums` leave the layers as values, are added over the mesh once for the whole model, and become `RoutingStats`
(or a loss, see `balance`) afterwards: a ratio of one shard's sums never exists, so it cannot be mistaken for the global
one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_jax.moe.plan import Plan
from moe_jax.moe.router import Routing
from moe_jax.moe.routers.soft import SoftRouting

POSITION_BINS = 8  # equal parts of a group, first tokens first
PROBABILITY_BINS = 20  # equal parts of [0, 1]


class RoutingSums(NamedTuple):
    """Sums over valid tokens; any leading dimensions (layers). E: null experts are among them."""

    tokens: Float[Array, "*M"]
    assigned: Float[Array, "*M E"]  # choices of each expert, before drops (Soft MoE: combine weight)
    probability: Float[Array, "*M E"]  # router probability of each expert
    squared_logsumexp: Float[Array, "*M"]
    entropy: Float[Array, "*M"]  # of the router's distribution, nats
    wanted_by_rank: Float[Array, "*M K"]
    dropped_by_rank: Float[Array, "*M K"]
    wanted_by_position: Float[Array, "*M P"]
    dropped_by_position: Float[Array, "*M P"]
    passed_through: Float[Array, "*M"]  # tokens none of whose choices got a slot
    probability_histogram: Float[Array, "*M Q"]  # router probabilities of chosen experts
    importance: Float[Array, "*M E"]  # gates of each expert's choices, before drops; 0 for null experts
    smooth_load: Float[Array, "*M E"] | None  # None: the router has none
    sequence_balance: Float[Array, "*M"] | None = None  # balance losses of single sequences; None: not measured
    sequences: Float[Array, "*M"] | None = None  # with valid tokens; likewise


def routing_sums(routing: Routing, plan: Plan) -> RoutingSums:
    """Sums over the tokens of all groups on this device."""
    num_experts = routing.probabilities.shape[-1]
    dtype = routing.probabilities.dtype
    valid = routing.valid.astype(dtype)
    wanted = routing.wanted.astype(dtype)
    dropped = (routing.wanted & ~plan.kept()).astype(dtype)
    chosen = jax.nn.one_hot(routing.expert, num_experts, dtype=dtype) * valid[..., None, None]
    gate = routing.gate * wanted
    smooth_load = None if routing.smooth_load is None else jnp.sum(routing.smooth_load * valid[..., None], axis=(0, 1))
    log_z = jax.nn.logsumexp(routing.logits, axis=-1)
    entropy = jnp.sum(jax.scipy.special.entr(jax.lax.stop_gradient(routing.probabilities)), axis=-1)
    return RoutingSums(
        tokens=jnp.sum(valid),
        assigned=jnp.sum(chosen, axis=(0, 1, 2)),
        probability=jnp.sum(routing.probabilities * valid[..., None], axis=(0, 1)),
        squared_logsumexp=jnp.sum(jnp.square(log_z) * valid),
        entropy=jnp.sum(entropy * valid),
        wanted_by_rank=jnp.sum(wanted, axis=(0, 1)),
        dropped_by_rank=jnp.sum(dropped, axis=(0, 1)),
        wanted_by_position=_by_position(jnp.sum(wanted, axis=(0, 2))),
        dropped_by_position=_by_position(jnp.sum(dropped, axis=(0, 2))),
        passed_through=jnp.sum(routing.valid & ~jnp.any(plan.kept(), axis=-1), dtype=dtype),
        probability_histogram=_histogram(
            jnp.sum(chosen * routing.probabilities[..., None, :], axis=-1), jnp.sum(chosen, axis=-1)
        ),
        importance=jnp.sum(chosen * gate[..., None], axis=(0, 1, 2)),
        smooth_load=smooth_load,
    )


def soft_sums(routing: SoftRouting) -> RoutingSums:
    """The same for Soft MoE, by combine weight: a token's weight on an expert is that on all its slots.

    An expert is assigned the weight it has; a token has one rank, the expert of its largest weight, and drops nothing.
    """
    weight = jax.nn.softmax(routing.expert_logits)
    expert = jnp.argmax(weight, axis=-1)[..., None]
    wanted = routing.valid[..., None]
    first = Routing(expert, jnp.max(weight, -1, keepdims=True), wanted, routing.valid, weight, routing.expert_logits)
    everything = Plan(jnp.zeros_like(expert), jnp.zeros((expert.shape[0], 1), expert.dtype))
    sums = routing_sums(first, everything)
    return sums._replace(assigned=sums.probability)


def _by_position(per_token: Float[Array, "T"]) -> Float[Array, "P"]:
    bins = jnp.arange(per_token.shape[0]) * POSITION_BINS // per_token.shape[0]
    return jnp.sum(jax.nn.one_hot(bins, POSITION_BINS, dtype=per_token.dtype) * per_token[:, None], axis=0)


def _histogram(probability: Float[Array, "G T K"], counts: Float[Array, "G T K"]) -> Float[Array, "Q"]:
    bins = jnp.minimum(probability * PROBABILITY_BINS, PROBABILITY_BINS - 1).astype(jnp.int32)
    counted = jax.nn.one_hot(bins, PROBABILITY_BINS, dtype=counts.dtype) * counts[..., None]
    return jnp.sum(counted, axis=(0, 1, 2))


class RoutingStats(NamedTuple):
    """What a researcher reads, by layer, from global sums; NaN for experts and ranks that other layers have."""

    load: Float[Array, "M E"]  # choices of each expert in multiples of the mean: 1 is balanced
    max_violation: Float[Array, "M"]  # MaxVio: (largest load - mean load) / mean load (Wang et al. 2024)
    dropped: Float[Array, "M"]  # fraction of wanted choices without a slot
    dropped_by_rank: Float[Array, "M K"]
    dropped_by_position: Float[Array, "M P"]
    passed_through: Float[Array, "M"]  # fraction of tokens without any slot
    entropy: Float[Array, "M"]  # mean over tokens, nats
    probability_histogram: Float[Array, "M Q"]  # counts


def routing_stats(sums: RoutingSums) -> RoutingStats:
    """Ratios of sums that cover the whole batch."""
    return RoutingStats(
        load=_load(sums.assigned),
        max_violation=max_violation(sums.assigned),
        dropped=sums.dropped_by_rank.sum(-1) / _at_least_one(sums.wanted_by_rank.sum(-1)),
        dropped_by_rank=sums.dropped_by_rank / _at_least_one(sums.wanted_by_rank),
        dropped_by_position=sums.dropped_by_position / _at_least_one(sums.wanted_by_position),
        passed_through=sums.passed_through / _at_least_one(sums.tokens),
        entropy=sums.entropy / _at_least_one(sums.tokens),
        probability_histogram=sums.probability_histogram,
    )


def stats_of_layers(parts: Sequence[RoutingSums]) -> RoutingStats:
    """The statistics of all layers, whose sums come in parts of equal layers, [M, ...] each."""
    stats = [routing_stats(part) for part in parts]

    def concatenate(*arrays: Float[Array, "..."]) -> Float[Array, "..."]:
        width = max(array.shape[-1] for array in arrays)
        pad = lambda array: jnp.pad(array, ((0, 0), (0, width - array.shape[-1])), constant_values=jnp.nan)
        return jnp.concatenate([pad(array) if array.ndim == 2 else array for array in arrays])

    return jax.tree.map(concatenate, *stats)


def max_violation(assigned: Float[Array, "*M E"]) -> Float[Array, "*M"]:
    """MaxVio of choices counted over any number of tokens: (largest load - mean load) / mean load; of none, 0."""
    return jnp.maximum(jnp.max(_load(assigned), axis=-1) - 1, 0)


def _load(assigned: Float[Array, "*M E"]) -> Float[Array, "*M E"]:
    return assigned / _at_least_one(jnp.mean(assigned, axis=-1, keepdims=True))


def _at_least_one(count: Float[Array, "..."]) -> Float[Array, "..."]:
    """Keeps a ratio of nothing to nothing at 0."""
    return jnp.where(count > 0, count, 1)
