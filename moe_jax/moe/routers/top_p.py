"""Top-p routing (Huang et al. 2024): as many experts as it takes for their probabilities to reach p."""

from typing import ClassVar

import jax
import jax.numpy as jnp

from moe_jax.config.rules import ConfigError
from moe_jax.moe.router import Router
from moe_jax.moe.routers.selection import top_k_choices


class TopP(Router):
    """The fewest experts whose probabilities add up to `moe.top_p`, at most `moe.top_k`; gates are raw probabilities. A
    flat distribution buys more experts, so `moe.entropy_loss` stands beside the balance loss (paper: 1e-4).
    """

    paper: ClassVar[str] = "Dynamic routing (Huang et al. 2024, arXiv 2403.07652), section 3"
    options: ClassVar[frozenset[str]] = Router.options | {"top_p"}

    @classmethod
    def check(cls, moe, name_of):
        """See `Router.check`."""
        if not 0 < moe.top_p <= 1:
            raise ConfigError(f"moe.top_p={moe.top_p} is outside (0, 1]: the paper's is 0.4")

    def choose(self, x, logits, context):
        """See `Router.choose`."""
        choices = top_k_choices(logits, jax.nn.log_softmax(logits), self.moe, None)
        before = jnp.cumsum(choices.gate, axis=-1) - choices.gate  # the probability of the experts it prefers
        return choices._replace(expert=jnp.where(before < self.moe.top_p, choices.expert, logits.shape[-1]))
