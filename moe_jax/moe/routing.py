"""The decision of a router, as a value: which experts each token goes to, and with what weight."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Mixing(NamedTuple):
    """Weights that mix a group's tokens into slots and its slots into tokens (Soft MoE). Slot c of expert e is the
    column e * C + c.
    """

    into_slots: Float[Array, "G T S"]  # sums to one over valid tokens
    into_tokens: Float[Array, "G T S"]  # sums to one over slots; zeros for a padding token


class Routing(NamedTuple):
    """The decision for every token of every group: K choices, the one that the router prefers first (rank 0).

    A router that mixes, and does not choose, states its largest weight as the only choice, so that every routing can be
    measured in the same way.
    """

    expert: Int[Array, "G T K"]  # below A; A: no choice, which is not wanted and counted nowhere
    gate: Float[Array, "G T K"]  # weight of the expert's output in the sum
    wanted: Bool[Array, "G T K"]  # False: a padding token, a null expert, or a choice that the router itself lets go
    valid: Bool[Array, "G T"]  # False: a padding token, which takes no slot and counts in no statistic
    probabilities: Float[Array, "G T A"]  # sum to 1; what the balance loss is computed from
    logits: Float[Array, "G T A"]
    input_gate: Float[Array, "G T K"] | None = None  # weight of the expert's input; None: 1
    identity_gate: Float[Array, "G T"] | None = None  # weight of the token itself in the layer's output; None: 0
    share: Float[Array, "G T A"] | None = None  # how much of a token each expert has; None: 1 for each of its choices
    mixing: Mixing | None = None  # None: the router chooses
    smooth_load: Float[Array, "G T E"] | None = None  # probability of being chosen, over the noise
    scores: Float[Array, "G T A"] | None = None  # what the balance bias is added to when experts are selected
    bias: Float[Array, "A"] | None = None  # the balance bias
    penalty: Float[Array, ""] | None = None  # a loss of the router's own weights


class Choices(NamedTuple):
    """What a router decides, before padding and null experts are taken out: fields of `Routing`."""

    expert: Int[Array, "G T K"]
    gate: Float[Array, "G T K"]
    probabilities: Float[Array, "G T A"]
    kept: Bool[Array, "G T K"] | None = None  # False: the router lets this choice go; None: it keeps all
    input_gate: Float[Array, "G T K"] | None = None
    identity_gate: Float[Array, "G T"] | None = None
    smooth_load: Float[Array, "G T E"] | None = None
    scores: Float[Array, "G T A"] | None = None


def pick(values: Float[Array, "G T A"], expert: Int[Array, "G T K"]) -> Float[Array, "G T K"]:
    """The values of each token at its experts (0 at A). Compares instead of indexing, whose gradient would be a
    scatter.
    """
    chosen = expert[..., None] == jnp.arange(values.shape[-1])
    return jnp.sum(jnp.where(chosen, values[..., None, :], 0), axis=-1)
