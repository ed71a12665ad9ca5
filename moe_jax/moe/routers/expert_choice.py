"""Expert choice: the experts choose tokens, and so have equal loads."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from moe_jax.moe.router import CARRY_SLOTS, Router
from moe_jax.moe.routing import Choices
from moe_jax.moe.ties import best


class ExpertChoice(Router):
    """S = softmax over experts of the logits; expert e takes the C tokens of a group with the largest S[:, e], with
    S[t, e] as gate. Of tokens that are equal but for rounding the earlier are taken (`moe_jax/moe/ties.py`).

    A token has 0 to E experts, `moe.top_k` * `moe.capacity_factor` on average: the paper's capacity factor c is this
    product. Loads are equal by construction, so there is no balancing, and nothing is dropped. Who is chosen depends on
    the whole group: not causal.

    All T * E pairs of a group are choices to the dispatchers, rank e being expert e. This costs T * E * E integers in
    the plan, and T * E * D numbers where `combine` gathers the rows of every pair and XLA does not fuse that with the
    sum: E / K times what routers by token choice need. `einsum` has T * E * E * C.
    """

    paper: ClassVar[str] = "Expert Choice (Zhou et al. 2022), section 3.2"
    causal: ClassVar[bool] = False
    causal_in_evaluation: ClassVar[bool] = False
    fills_slots: ClassVar[bool] = True
    dispatchers: ClassVar[tuple[str, ...]] = CARRY_SLOTS
    options: ClassVar[frozenset[str]] = Router.options | {"routed_scaling"}
    fixed_fields: ClassVar[Mapping[str, object]] = {
        "balance_loss": 0.0,
        "balance_scope": "micro_batch",
        "importance_loss": 0.0,
        "drop_order": "position",
    }

    def choose(self, x, logits, context):
        """See `Router.choose`; `context.capacity` is C."""
        probabilities = jax.nn.softmax(logits)
        # By logarithms, since probabilities underflow; padding comes last.
        score = jnp.where(context.valid[..., None], jax.lax.stop_gradient(jax.nn.log_softmax(logits)), -jnp.inf)
        chosen = best(score, context.capacity)
        experts = logits.shape[-1]
        expert = jnp.where(chosen, jnp.arange(experts), experts)
        return Choices(expert, probabilities * self.moe.routed_scaling, probabilities, kept=chosen)
