"""Llama 4: the gate weighs what an expert reads, not what it writes."""

from typing import ClassVar

import jax
import jax.numpy as jnp

from moe_jax.moe.router import Router
from moe_jax.moe.routers.selection import top_k_choices


class Llama4(Router):
    """The K largest logits (Llama 4: one); sigmoid(logit) multiplies the expert's input, its output has weight 1."""

    paper: ClassVar[str] = "Llama 4 (Meta 2025), the published model code"
    gates_input: ClassVar[bool] = True

    def choose(self, x, logits, context):
        """See `Router.choose`."""
        choices = top_k_choices(logits, jax.nn.log_sigmoid(logits), self.moe, None)
        return choices._replace(gate=jnp.ones_like(choices.gate), input_gate=choices.gate)
