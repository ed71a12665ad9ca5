"""DeepSeek-V4 (DeepSeek-AI 2026): scores sqrt(softplus(logit)); in the first layers experts by the token's id."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_jax.moe.router import Router
from moe_jax.moe.routers.controls import highest, lots_of_ids
from moe_jax.moe.routers.selection import gates, top_k_choices
from moe_jax.moe.routers.top_k import Sigmoid
from moe_jax.moe.routing import Choices, pick


class SqrtSoftplus(Sigmoid):
    """Each expert scored by itself, s = sqrt(softplus(logit)); otherwise like `sigmoid`."""

    paper = "DeepSeek-V4 (DeepSeek-AI 2026), the layers that choose by score"

    def choose(self, x, logits, context):
        """See `Router.choose`."""
        return top_k_choices(logits, log_scores(logits), self.moe, self.bias_of_scores())


class HashedSqrtSoftplus(Router):
    """The experts that `hash` has for a token's vocabulary index, with the gates of `sqrt_softplus`; for the first
    layers, in `moe.router_by_layer`.
    """

    paper = "DeepSeek-V4 (DeepSeek-AI 2026), the first three layers"
    options = Router.options | {"normalize_gates", "routed_scaling"}

    def choose(self, x, logits, context):
        """See `Router.choose`."""
        expert = highest(lots_of_ids(context.ids, self.moe.num_experts), self.moe.top_k)
        scores = log_scores(logits)
        return Choices(expert, gates(pick(scores, expert), self.moe), probabilities=jax.nn.softmax(scores))


def log_scores(logits: Float[Array, "G T A"]) -> Float[Array, "G T A"]:
    """log(softplus(logit)) / 2; far below 0 softplus is the exponential, and would underflow."""
    return jnp.where(logits < -15, logits, jnp.log(jax.nn.softplus(jnp.maximum(logits, -15)))) / 2
