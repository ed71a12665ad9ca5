"""LongCat: choices that return the token itself, so that easy tokens cost less."""

from typing import ClassVar

import jax.numpy as jnp

from moe_jax.config.rules import ConfigError
from moe_jax.moe.routers.top_k import TopK


class LongCat(TopK):
    """Like `top_k`, but a null expert passes its token on, times the gate (identity experts)."""

    paper: ClassVar[str] = "LongCat-Flash (Meituan 2025, arXiv 2509.01322), section 2.1"
    options: ClassVar[frozenset[str]] = TopK.options | {"target_experts"}

    @classmethod
    def check(cls, moe, name_of):
        """See `Router.check`."""
        within = moe.null_experts > 0 and 0 < moe.target_experts <= moe.top_k
        if not (within if moe.bias_update == "longcat" else moe.target_experts == 0):
            raise ConfigError(
                f"moe.target_experts={moe.target_experts} with moe.bias_update={moe.bias_update!r}: 'longcat' needs "
                f"null experts and a target above 0 and at most {name_of['top_k']}={moe.top_k}, any other needs 0"
            )

    def choose(self, x, logits, context):
        """See `Router.choose`."""
        choices = super().choose(x, logits, context)
        passed_on = choices.expert >= self.moe.num_experts
        return choices._replace(identity_gate=jnp.sum(jnp.where(passed_on, choices.gate, 0), axis=-1))
