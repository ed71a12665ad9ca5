"""Sinkhorn routing: in training the experts are chosen from an assignment with equal loads."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from moe_jax.moe.router import Router
from moe_jax.moe.routers.selection import best_experts, gates
from moe_jax.moe.routing import Choices, pick


class Sinkhorn(Router):
    """S-BASE: the K largest entries of a token's row of the Sinkhorn-normalised group; gates are raw probabilities.

    The normalisation looks at the whole group, so a token's choice depends on later ones: not causal. In evaluation the
    most probable experts are chosen, which is.
    """

    paper: ClassVar[str] = "S-BASE (Clark et al. 2022), Sinkhorn instead of the linear assignment of BASE layers"
    causal: ClassVar[bool] = False  # in evaluation it is
    options: ClassVar[frozenset[str]] = Router.options | {"sinkhorn_iterations"}

    def choose(self, x, logits, context):
        """See `Router.choose`."""
        log_scores = jax.nn.log_softmax(logits)
        ranked = logits
        if context.train:
            offsets = balancing_offsets(lax.stop_gradient(log_scores), context.valid, self.moe.sinkhorn_iterations)
            ranked = logits + offsets
        expert = best_experts(ranked, self.moe.top_k)
        return Choices(expert, gates(pick(log_scores, expert), self.moe), probabilities=jax.nn.softmax(log_scores))


def balancing_offsets(
    logits: Float[Array, "G T E"], valid: Bool[Array, "G T"], iterations: int
) -> Float[Array, "G 1 E"]:
    """What to add to each expert's logits so that the softmax of the rows has equal sums of columns.

    Sinkhorn's algorithm in logarithms: the valid rows of exp(logits) are scaled to sums of 1 and the columns to sums of
    T / E, in turn, `iterations` times. The scales of the columns are returned: those of the rows change no order within
    a row.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    rows = valid[..., None]
    share = jnp.log(jnp.maximum(jnp.sum(rows, axis=1, keepdims=True), 1) / logits.shape[-1]).astype(logits.dtype)

    def scale_columns(offsets):
        balanced = jax.nn.log_softmax(logits + offsets)
        column = jax.nn.logsumexp(balanced, axis=1, keepdims=True, where=rows)
        return jnp.where(jnp.any(rows, axis=1, keepdims=True), offsets + share - column, offsets)

    first = scale_columns(jnp.zeros_like(logits[:, :1]))
    return lax.fori_loop(1, iterations, lambda _, offsets: scale_columns(offsets), first)
