"""Sums over tokens: what leaves a layer so that losses, statistics and biases can be computed for the whole batch.

Every device sums over its own tokens and only ratios of global sums are ever looked at: `Sums` are added over the mesh
once for the whole model, so a ratio of one device's sums never exists and cannot be mistaken for the global one. Here
are the sums that several measures and losses share; one that belongs to a single measure stands beside it. The name of
its function is the name of a sum.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from moe_jax.moe.routing import Routing

Sums = dict[str, Float[Array, "..."]]  # by the name of the function; with leading dimensions for layers


class Observed(NamedTuple):
    """What can be measured of one layer on this device."""

    routing: Routing
    kept: Bool[Array, "G T K"]  # which choices the dispatcher carried
    sequences: int  # B, where the groups' tokens, in order, are those of [B, L]


SumOf = Callable[[Observed], "Float[Array, '...'] | None"]  # None: this routing has nothing to add up


def total(functions: Iterable[SumOf], observed: Observed) -> Sums:
    """Each function's sum once, however many measures ask for it."""
    sums = {}
    for function in functions:
        if function.__name__ not in sums and (value := function(observed)) is not None:
            sums[function.__name__] = value
    return sums


def at_least_one(count: Float[Array, "..."]) -> Float[Array, "..."]:
    """Keeps a ratio of nothing to nothing at 0."""
    return jnp.where(count > 0, count, 1)


def tokens(observed: Observed) -> Float[Array, ""]:
    """Valid tokens."""
    return jnp.sum(valid_tokens(observed.routing))


def choices(observed: Observed) -> Float[Array, "A"]:
    """Choices of each expert, before drops; null experts are among them, and second choices that gshard lets go (Soft
    MoE: combine weight).
    """
    routing = observed.routing
    if routing.share is not None:
        return jnp.sum(routing.share * valid_tokens(routing)[..., None], axis=(0, 1))
    return jnp.sum(one_hot_choices(routing), axis=(0, 1, 2))


def probability(observed: Observed) -> Float[Array, "A"]:
    """Router probability of each expert."""
    routing = observed.routing
    return jnp.sum(routing.probabilities * valid_tokens(routing)[..., None], axis=(0, 1))


def wanted_by_rank(observed: Observed) -> Float[Array, "K"]:
    """Wanted choices of each rank."""
    routing = observed.routing
    return jnp.sum(routing.wanted.astype(routing.probabilities.dtype), axis=(0, 1))


def valid_tokens(routing: Routing) -> Float[Array, "G T"]:
    """1 for a valid token, 0 for padding."""
    return routing.valid.astype(routing.probabilities.dtype)


def one_hot_choices(routing: Routing) -> Float[Array, "G T K A"]:
    """1 at the expert of each valid token's choice; zeros for padding and for no choice."""
    one_hot = jax.nn.one_hot(routing.expert, routing.probabilities.shape[-1], dtype=routing.probabilities.dtype)
    return one_hot * valid_tokens(routing)[..., None, None]
