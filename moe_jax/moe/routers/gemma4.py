"""Gemma 4: a trained scale for every expert."""

from typing import ClassVar

import jax.numpy as jnp
from flax import nnx

from moe_jax.moe.routers.top_k import TopK
from moe_jax.moe.routing import pick
from moe_jax.parallel.sharding import gather, param


class Gemma4(TopK):
    """The K most probable experts of the softmax; gates as `top_k` has them, times a trained scale of each expert."""

    paper: ClassVar[str] = "Gemma 4 (Google 2026), the published model code"

    def __init__(self, d_model, moe, init, rngs, dtype=jnp.float32):
        super().__init__(d_model, moe, init, rngs, dtype)
        self.scale = param(rngs, (self.weight.shape[1],), (None,), nnx.initializers.ones, dtype)

    @classmethod
    def vector_params(cls, moe):
        """See `Router.vector_params`."""
        return super().vector_params(moe) + moe.num_experts + moe.null_experts

    def choose(self, x, logits, context):
        """See `Router.choose`."""
        choices = super().choose(x, logits, context)
        scale = jnp.broadcast_to(gather(self.scale, logits.dtype), logits.shape)
        return choices._replace(gate=choices.gate * pick(scale, choices.expert))
