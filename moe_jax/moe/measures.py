"""Routing statistics, one entry each: which sums it needs, the ratio of them, its name, and how it is shown.

Add a measure with a function for each sum that is not there yet, and one entry in `MEASURES`: the training step, the
metrics and TensorBoard loop over them. A scalar called NAME is shown as `moe/NAME`, the mean over MoE layers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from moe_jax.moe.sums import (
    Observed,
    SumOf,
    Sums,
    at_least_one,
    choices,
    one_hot_choices,
    tokens,
    valid_tokens,
    wanted_by_rank,
)

POSITION_BINS = 8  # equal parts of a group, first tokens first
PROBABILITY_BINS = 20  # equal parts of [0, 1]


class Measure(NamedTuple):
    """One statistic of each MoE layer."""

    sums: tuple[SumOf, ...]
    ratio: Callable[[Sums], Float[Array, "*M _"]] | Callable[[Sums], Float[Array, "*M"]]
    per: str = ""  # what its last dimension counts: expert, rank, position, bin; "": it has one number for each layer
    by_layer: bool = False  # the number of each layer is shown too, as NAME_layer_0 ...


def dropped_by_rank(observed: Observed) -> Float[Array, "K"]:
    """Wanted choices of each rank that were not carried."""
    return jnp.sum(_dropped(observed), axis=(0, 1))


def wanted_by_position(observed: Observed) -> Float[Array, "P"]:
    """Wanted choices in each part of the groups."""
    return _by_position(jnp.sum(observed.routing.wanted.astype(observed.routing.probabilities.dtype), axis=(0, 2)))


def dropped_by_position(observed: Observed) -> Float[Array, "P"]:
    """Wanted choices in each part of the groups that were not carried."""
    return _by_position(jnp.sum(_dropped(observed), axis=(0, 2)))


def passed_through(observed: Observed) -> Float[Array, ""]:
    """Valid tokens none of whose choices was carried."""
    routing = observed.routing
    return jnp.sum(routing.valid & ~jnp.any(observed.kept, axis=-1), dtype=routing.probabilities.dtype)


def entropy(observed: Observed) -> Float[Array, ""]:
    """Entropy of the router's distribution, in nats."""
    routing = observed.routing
    by_token = jnp.sum(jax.scipy.special.entr(jax.lax.stop_gradient(routing.probabilities)), axis=-1)
    return jnp.sum(by_token * valid_tokens(routing))


def probability_counts(observed: Observed) -> Float[Array, "Q"]:
    """How many chosen experts had a router probability in each of `PROBABILITY_BINS` equal parts of [0, 1]."""
    routing = observed.routing
    chosen = one_hot_choices(routing)
    chosen_probability = jnp.sum(chosen * routing.probabilities[..., None, :], axis=-1)
    bins = jnp.minimum(chosen_probability * PROBABILITY_BINS, PROBABILITY_BINS - 1).astype(jnp.int32)
    counted = jax.nn.one_hot(bins, PROBABILITY_BINS, dtype=chosen.dtype) * jnp.sum(chosen, axis=-1)[..., None]
    return jnp.sum(counted, axis=(0, 1, 2))


def load(counted: Float[Array, "*M A"]) -> Float[Array, "*M A"]:
    """Choices of each expert in multiples of the mean: 1 is balanced."""
    return counted / at_least_one(jnp.mean(counted, axis=-1, keepdims=True))


def max_violation(counted: Float[Array, "*M A"]) -> Float[Array, "*M"]:
    """MaxVio (Wang et al. 2024) of choices counted over any number of tokens: (largest load - mean load) / mean load;
    0 where there is no choice.
    """
    return jnp.maximum(jnp.max(load(counted), axis=-1) - 1, 0)


MEASURES: dict[str, Measure] = {
    "load": Measure((choices,), lambda s: load(s["choices"]), per="expert"),
    # The fraction of wanted choices that were not carried, of all of them, by rank, and by place in the group.
    "dropped_fraction": Measure(
        (wanted_by_rank, dropped_by_rank),
        lambda s: s["dropped_by_rank"].sum(-1) / at_least_one(s["wanted_by_rank"].sum(-1)),
        by_layer=True,
    ),
    "passed_through": Measure((passed_through, tokens), lambda s: s["passed_through"] / at_least_one(s["tokens"])),
    "max_violation": Measure((choices,), lambda s: max_violation(s["choices"]), by_layer=True),
    "router_entropy": Measure((entropy, tokens), lambda s: s["entropy"] / at_least_one(s["tokens"])),
    # Wanted choices: without those of null experts and those that the router itself lets go.
    "experts_per_token": Measure(
        (wanted_by_rank, tokens), lambda s: s["wanted_by_rank"].sum(-1) / at_least_one(s["tokens"])
    ),
    "dropped_fraction_rank": Measure(
        (wanted_by_rank, dropped_by_rank),
        lambda s: s["dropped_by_rank"] / at_least_one(s["wanted_by_rank"]),
        per="rank",
    ),
    "dropped_fraction_position": Measure(
        (wanted_by_position, dropped_by_position),
        lambda s: s["dropped_by_position"] / at_least_one(s["wanted_by_position"]),
        per="position",
    ),
    "probability": Measure((probability_counts,), lambda s: s["probability_counts"], per="bin"),
}

Stats = dict[str, Float[Array, "M _"] | Float[Array, "M"]]  # by the name of the measure


def routing_stats(sums: Sums) -> Stats:
    """Every measure of layers whose sums cover the whole batch."""
    return {name: measure.ratio(sums) for name, measure in MEASURES.items()}


def stats_of_layers(parts: Sequence[Mapping[str, np.ndarray | Array]]) -> dict[str, np.ndarray]:
    """The statistics of all layers, on the host, from parts of equal layers. NaN marks experts and ranks that a layer
    does not have and others have.
    """

    def concatenate(arrays: list[np.ndarray]) -> np.ndarray:
        if arrays[0].ndim == 1:
            return np.concatenate(arrays)
        width = max(array.shape[-1] for array in arrays)
        pad = lambda array: np.pad(array, ((0, 0), (0, width - array.shape[-1])), constant_values=np.nan)
        return np.concatenate([pad(np.asarray(array)) for array in arrays])

    return {name: concatenate([np.asarray(part[name]) for part in parts]) for name in parts[0]}


def scalars(stats: Mapping[str, np.ndarray]) -> Iterator[tuple[str, float]]:
    """(name, number) of everything that is shown as a curve, from the statistics of all layers."""
    for name, measure in MEASURES.items():
        if not measure.per:
            yield name, np.mean(stats[name])
        if measure.by_layer:
            yield from ((f"{name}_layer_{i}", value) for i, value in enumerate(stats[name]))
        if measure.per in ("rank", "position"):
            yield from ((f"{name}_{i}", value) for i, value in enumerate(np.nanmean(stats[name], axis=0)))


def _dropped(observed: Observed) -> Float[Array, "G T K"]:
    return (observed.routing.wanted & ~observed.kept).astype(observed.routing.probabilities.dtype)


def _by_position(per_token: Float[Array, "T"]) -> Float[Array, "P"]:
    bins = jnp.arange(per_token.shape[0]) * POSITION_BINS // per_token.shape[0]
    return jnp.sum(jax.nn.one_hot(bins, POSITION_BINS, dtype=per_token.dtype) * per_token[:, None], axis=0)
