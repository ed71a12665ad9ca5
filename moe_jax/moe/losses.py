"""Auxiliary losses that keep routing balanced and its logits small, from sums that cover the whole batch.

Add one with an entry in `LOSSES`, whose name is the field of `MoEConfig` that weighs it and, in metrics, `moe/NAME`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from moe_jax.config.schema import MoEConfig
from moe_jax.moe.sums import Observed, SumOf, Sums, choices, one_hot_choices, probability, tokens, valid_tokens

BALANCE_SCOPES = ("micro_batch", "sequence", "global_batch")

Before = Float[Array, "... _A"] | None  # choices of each expert in the step's earlier micro-batches


def squared_logsumexp(observed: Observed) -> Float[Array, ""]:
    """The square of logsumexp(logits) of each token."""
    log_z = jax.nn.logsumexp(observed.routing.logits, axis=-1)
    return jnp.sum(jnp.square(log_z) * valid_tokens(observed.routing))


def importance(observed: Observed) -> Float[Array, "A"]:
    """Gates of each expert's choices, before drops; 0 for null experts."""
    routing = observed.routing
    gate = routing.gate * routing.wanted.astype(routing.gate.dtype)
    return jnp.sum(one_hot_choices(routing) * gate[..., None], axis=(0, 1, 2))


def smooth_load(observed: Observed) -> Float[Array, "E"] | None:
    """Probability of each expert to be chosen when the noise is drawn anew; None: the router has no such noise."""
    routing = observed.routing
    if routing.smooth_load is None:
        return None
    return jnp.sum(routing.smooth_load * valid_tokens(routing)[..., None], axis=(0, 1))


def sequence_balance(observed: Observed) -> Float[Array, ""]:
    """The balance losses of single sequences (DeepSeek-V3, equations 17 to 20), over those with a valid token.

    f_e counts the experts of the K largest logits (equation 18): what a token would choose without balance bias,
    limited groups, noise, hashed experts or Sinkhorn's assignment. A group may span or cut sequences.
    """
    routing = observed.routing
    num_experts = routing.probabilities.shape[-1]
    dtype = routing.probabilities.dtype
    valid = valid_tokens(routing)[..., None]
    _, best = lax.top_k(lax.stop_gradient(routing.logits), routing.expert.shape[-1])
    chosen = jnp.sum(jax.nn.one_hot(best, num_experts, dtype=dtype), axis=-2) * valid
    over_tokens = lambda x: _by_sequence(x, observed.sequences)
    return jnp.sum(_balance(over_tokens(chosen), over_tokens(routing.probabilities * valid), over_tokens(valid)[:, 0]))


def sequences(observed: Observed) -> Float[Array, ""]:
    """Sequences with a valid token."""
    valid = valid_tokens(observed.routing)[..., None]
    return jnp.sum(_by_sequence(valid, observed.sequences)[:, 0] > 0, dtype=valid.dtype)


def trained_entropy(observed: Observed) -> Float[Array, ""]:
    """Entropy of the router's distribution, in nats. It is `measures.entropy` with a gradient, which the function that
    measures has not, and which would be infinite at a probability of 0.
    """
    p = observed.routing.probabilities
    by_token = -jnp.sum(p * jnp.log(jnp.maximum(p, jnp.finfo(p.dtype).tiny)), axis=-1)
    return jnp.sum(by_token * valid_tokens(observed.routing))


def router_penalty(observed: Observed) -> Float[Array, ""] | None:
    """The loss of the router's own weights, once for each token, so that it is itself again when divided by tokens."""
    penalty = observed.routing.penalty
    return None if penalty is None else penalty * tokens(observed)


def balance_loss(sums: Sums, before: Before = None) -> Float[Array, "*M"]:
    """Load-balancing loss of each layer: E * sum_e f_e P_e (Switch Transformer, equations 4 to 6).

    f_e is the fraction of all choices that went to expert e, before drops, and P_e its mean router probability. The
    minimum, for uniform f and P, is 1. Only P carries a gradient.

    f covers the choices `before` too, where they are given, as in the buffer that Qiu et al. 2025 (Demons in the
    Detail) keep for their global-batch loss under gradient accumulation.
    """
    counted = sums["choices"] if before is None else sums["choices"] + before
    return _balance(counted, sums["probability"], sums["tokens"])


def z_loss(sums: Sums) -> Float[Array, "*M"]:
    """Router z-loss of each layer: the mean over tokens of logsumexp(logits) squared (ST-MoE, equation 5)."""
    return sums["squared_logsumexp"] / jnp.maximum(sums["tokens"], 1)


def importance_loss(sums: Sums, null_experts: int = 0) -> Float[Array, "*M"]:
    """CV(importance)^2 of each layer (Shazeer et al. 2017, equations 6 and 7): an expert's importance is the sum of its
    gates over the tokens that choose it, before drops. Null experts, the last ones, have none.
    """
    return cv_squared(sums["importance"][..., : sums["importance"].shape[-1] - null_experts])


def load_loss(sums: Sums) -> Float[Array, "*M"]:
    """CV(load)^2 of each layer (Shazeer et al. 2017, equations 10 and 11): an expert's load is the sum over tokens of
    the probability that new noise on its logit makes them choose it, which has a gradient where a count has none.
    """
    return cv_squared(sums["smooth_load"])


def entropy_loss(sums: Sums) -> Float[Array, "*M"]:
    """Mean entropy of each layer's router in nats: it keeps `top_p` from buying experts (Huang et al. 2024)."""
    return sums["trained_entropy"] / jnp.maximum(sums["tokens"], 1)


def penalty_loss(sums: Sums) -> Float[Array, "*M"]:
    """The loss of the router's own weights that moe.penalty names, of each layer."""
    return sums["router_penalty"] / jnp.maximum(sums["tokens"], 1)


def cv_squared(x: Float[Array, "*M E"]) -> Float[Array, "*M"]:
    """The squared coefficient of variation: population variance over squared mean; 0 where all of x is 0."""
    mean = jnp.mean(x, axis=-1)
    return jnp.var(x, axis=-1) / jnp.where(mean == 0, 1, jnp.square(mean))


class Loss(NamedTuple):
    """One auxiliary loss of each MoE layer."""

    sums: Callable[[MoEConfig], tuple[SumOf, ...]]
    of: Callable[[Sums, MoEConfig, Before], Float[Array, "*M"]]
    always_shown: bool = False  # also where its weight is 0


def _balance_of_scope(sums: Sums, moe: MoEConfig, before: Before) -> Float[Array, "*M"]:
    match moe.balance_scope:
        case "sequence":
            return sums["sequence_balance"] / jnp.maximum(sums["sequences"], 1)
        case "global_batch":
            return balance_loss(sums, before)
        case _:
            return balance_loss(sums)


def _balance_sums(moe: MoEConfig) -> tuple[SumOf, ...]:
    of_sequences = (sequence_balance, sequences) if moe.balance_scope == "sequence" else ()
    return (choices, probability, tokens, *of_sequences)


LOSSES: dict[str, Loss] = {
    "balance_loss": Loss(_balance_sums, _balance_of_scope, always_shown=True),
    "z_loss": Loss(lambda moe: (squared_logsumexp, tokens), lambda sums, moe, before: z_loss(sums), always_shown=True),
    "importance_loss": Loss(
        lambda moe: (importance,), lambda sums, moe, before: importance_loss(sums, moe.null_experts)
    ),
    "load_loss": Loss(lambda moe: (smooth_load,), lambda sums, moe, before: load_loss(sums)),
    "entropy_loss": Loss(lambda moe: (trained_entropy, tokens), lambda sums, moe, before: entropy_loss(sums)),
    "penalty_loss": Loss(lambda moe: (router_penalty, tokens), lambda sums, moe, before: penalty_loss(sums)),
}

AuxiliaryLosses = dict[str, Float[Array, ""]]  # by the name of the loss: unweighted, summed over MoE layers


def active_losses(moe: MoEConfig) -> dict[str, Loss]:
    """Those that are shown or have a weight."""
    return {name: loss for name, loss in LOSSES.items() if loss.always_shown or getattr(moe, name)}


def auxiliary_losses(
    moe: MoEConfig, parts: Sequence[Sums], before: Sequence[Float[Array, "_M _A"]] | None = None
) -> AuxiliaryLosses:
    """The losses of all layers, whose sums come in parts of equal layers; zeros without any. A layer whose router has
    nothing to add up for a loss does without it.

    `before` has the choices of each expert in the step's earlier micro-batches, for moe.balance_scope="global_batch".
    """
    counted: Sequence[Before] = [None] * len(parts) if before is None else before

    def over_layers(loss: Loss) -> Float[Array, ""]:
        needed = {function.__name__ for function in loss.sums(moe)}
        able = [(part, earlier) for part, earlier in zip(parts, counted, strict=True) if needed <= part.keys()]
        return sum((jnp.sum(loss.of(part, moe, earlier)) for part, earlier in able), start=jnp.zeros(()))

    return {name: over_layers(loss) for name, loss in active_losses(moe).items()}


def weighted(moe: MoEConfig, losses: AuxiliaryLosses) -> Float[Array, ""]:
    """What the auxiliary losses add to the loss of the task."""
    return sum((getattr(moe, name) * loss for name, loss in losses.items()), start=jnp.zeros(()))


def _by_sequence(x: Float[Array, "G T _"], count: int) -> Float[Array, "B _"]:
    return jnp.sum(x.reshape(count, -1, x.shape[-1]), axis=1)


def _balance(
    counted: Float[Array, "*M A"], probability: Float[Array, "*M A"], tokens: Float[Array, "*M"]
) -> Float[Array, "*M"]:
    f = counted / jnp.maximum(jnp.sum(counted, axis=-1, keepdims=True), 1)
    p = probability / jnp.maximum(tokens, 1)[..., None]
    return counted.shape[-1] * jnp.sum(f * p, axis=-1)
