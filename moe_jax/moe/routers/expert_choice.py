"""Expert choice: the experts choose tokens, and so have equal loads."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from moe_jax.moe.router import Router, Routing, TokenInfo


class ExpertChoice(Router):
    """Expert choice (Zhou et al. 2022, section 3.2): S = softmax over experts of the logits; expert e takes the C
    tokens of a group with the largest S[:, e] (ties: the earlier token), with S[t, e] as gate.

    A token has 0 to E experts, `moe.top_k` * `moe.capacity_factor` on average: the paper's capacity factor c is this
    product. Loads are equal by construction, so there is no balancing, and nothing is dropped. Who is chosen depends on
    the whole group: not causal.

    All T * E pairs of a group are choices to the dispatchers, rank e being expert e. This costs T * E * E integers in
    the plan, and T * E * D numbers where `combine` gathers the rows of every pair and XLA does not fuse that with the
    sum: E / K times what routers by token choice need. `einsum` has T * E * E * C.
    """

    causal = False
    paper = "Zhou et al. 2022, Mixture-of-Experts with Expert Choice Routing, section 3.2"
    fills_slots = True
    fixed_fields = {  # noqa: RUF012
        "balance_loss": 0.0,
        "importance_loss": 0.0,
        "load_loss": 0.0,
        "bias_rate": 0.0,
        "normalize_gates": False,
        "null_experts": 0,
        "drop_order": "position",
    }

    def __call__(self, x: Float[Array, "G T D"], info: TokenInfo) -> Routing:
        """Routes every token; `info.capacity` is C."""
        logits = self.logits(x, info)
        probabilities = jax.nn.softmax(logits)
        chosen = _top_tokens(jax.lax.stop_gradient(jax.nn.log_softmax(logits)), info.valid, info.capacity)
        experts = logits.shape[-1]
        expert = jnp.where(chosen, jnp.arange(experts), experts)
        gate = probabilities * self.moe.routed_scaling
        return Routing(expert, gate, chosen, info.valid, probabilities, logits)


def _top_tokens(score: Float[Array, "G T E"], valid: Bool[Array, "G T"], capacity: int) -> Bool[Array, "G T E"]:
    """Which tokens are among each expert's `capacity` best valid ones. By logarithms: probabilities may underflow."""
    score = jnp.where(valid[..., None], score, -jnp.inf)
    best_first = jnp.argsort(-score, axis=1, stable=True)
    place = jnp.argsort(best_first, axis=1)
    return (place < capacity) & valid[..., None]
