"""Auxiliary losses that keep routing balanced and its logits small, from global sums."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from moe_jax.config.schema import MoEConfig
from moe_jax.moe.router import Routing
from moe_jax.moe.stats import RoutingSums

BALANCE_SCOPES = ("micro_batch", "sequence", "global_batch")


def balance_loss(sums: RoutingSums, before: Float[Array, "*M E"] | None = None) -> Float[Array, "*M"]:
    """Load-balancing loss of each layer: E * sum_e f_e P_e (Switch Transformer, equations 4 to 6).

    f_e: the fraction of all choices that went to expert e, before drops; P_e: its mean router probability. The minimum,
    for uniform f and P, is 1. Only P carries a gradient.

    `before`: choices of each expert in the step's earlier micro-batches, which f then covers too, as in the buffer that
    Qiu et al. 2025 (Demons in the Detail) keep for their global-batch loss under gradient accumulation.
    """
    assigned = sums.assigned if before is None else sums.assigned + before
    return _balance(assigned, sums.probability, sums.tokens)


def sequence_balance(routing: Routing, sequences: int) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The balance losses of single sequences (DeepSeek-V3, equations 17 to 20), summed over those of this device that
    have a valid token, and their number.

    f_e counts the experts of the K largest logits (equation 18): what a token would choose without balance bias,
    limited groups, noise or Sinkhorn's assignment.

    `sequences`: B, where the groups' tokens, in order, are those of [B, L]; a group may span or cut sequences.
    """
    num_experts = routing.probabilities.shape[-1]
    dtype = routing.probabilities.dtype
    valid = routing.valid.astype(dtype)[..., None]
    _, best = lax.top_k(lax.stop_gradient(routing.logits), routing.expert.shape[-1])
    chosen = jnp.sum(jax.nn.one_hot(best, num_experts, dtype=dtype), axis=-2) * valid
    over_tokens = lambda x: jnp.sum(x.reshape(sequences, -1, x.shape[-1]), axis=1)
    tokens = over_tokens(valid)[:, 0]
    losses = _balance(over_tokens(chosen), over_tokens(routing.probabilities * valid), tokens)
    return jnp.sum(losses), jnp.sum(tokens > 0, dtype=dtype)


def z_loss(sums: RoutingSums) -> Float[Array, "*M"]:
    """Router z-loss of each layer: the mean over tokens of logsumexp(logits) squared (ST-MoE, equation 5)."""
    return sums.squared_logsumexp / jnp.maximum(sums.tokens, 1)


def importance_loss(sums: RoutingSums, null_experts: int = 0) -> Float[Array, "*M"]:
    """CV(importance)^2 of each layer (Shazeer et al. 2017, equations 6 and 7): an expert's importance is the sum of its
    gates over the tokens that choose it, before drops. Null experts, the last ones, have none.
    """
    return cv_squared(sums.importance[..., : sums.importance.shape[-1] - null_experts])


def load_loss(sums: RoutingSums) -> Float[Array, "*M"]:
    """CV(load)^2 of each layer (Shazeer et al. 2017, equations 10 and 11): an expert's load is the sum over tokens of
    the probability that new noise on its logit makes them choose it, which has a gradient where a count has none.
    """
    return cv_squared(sums.smooth_load)


def cv_squared(x: Float[Array, "*M E"]) -> Float[Array, "*M"]:
    """The squared coefficient of variation: population variance over squared mean; 0 where all of x is 0."""
    mean = jnp.mean(x, axis=-1)
    return jnp.var(x, axis=-1) / jnp.where(mean == 0, 1, jnp.square(mean))


class AuxiliaryLosses(NamedTuple):
    """Unweighted, each the sum over MoE layers."""

    balance: Float[Array, ""]
    z: Float[Array, ""]
    importance: Float[Array, ""] | None  # None: not a part of the loss
    load: Float[Array, ""] | None  # likewise


def auxiliary_losses(
    moe: MoEConfig, sums: Sequence[RoutingSums], before: Sequence[Float[Array, "_M _E"]] | None = None
) -> AuxiliaryLosses:
    """Of layers whose sums come in parts, [M, ...] each; zeros without any.

    `before`: choices of each expert in the step's earlier micro-batches, for moe.balance_scope="global_batch".
    """

    def over_layers(loss: Callable, *more: Sequence) -> Float[Array, ""]:
        return sum((jnp.sum(loss(*part)) for part in zip(sums, *more, strict=True)), start=jnp.zeros(()))

    match moe.balance_scope:
        case "sequence":
            balance = over_layers(lambda part: part.sequence_balance / jnp.maximum(part.sequences, 1))
        case "global_batch" if before is not None:
            balance = over_layers(balance_loss, before)
        case _:
            balance = over_layers(balance_loss)
    return AuxiliaryLosses(
        balance=balance,
        z=over_layers(z_loss),
        importance=over_layers(lambda part: importance_loss(part, moe.null_experts)) if moe.importance_loss else None,
        load=over_layers(load_loss) if moe.load_loss else None,
    )


def weighted(moe: MoEConfig, losses: AuxiliaryLosses) -> Float[Array, ""]:
    """What they add to the cross-entropy."""
    total = moe.balance_loss * losses.balance + moe.z_loss * losses.z
    if losses.importance is not None:
        total = total + moe.importance_loss * losses.importance
    return total if losses.load is None else total + moe.load_loss * losses.load


def _balance(
    assigned: Float[Array, "*M E"], probability: Float[Array, "*M E"], tokens: Float[Array, "*M"]
) -> Float[Array, "*M"]:
    f = assigned / jnp.maximum(jnp.sum(assigned, axis=-1, keepdims=True), 1)
    p = probability / jnp.maximum(tokens, 1)[..., None]
    return assigned.shape[-1] * jnp.sum(f * p, axis=-1)
