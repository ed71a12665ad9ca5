"""The expert bias of balancing without an auxiliary loss (Wang et al. 2024; DeepSeek-V3)."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from moe_jax.config.schema import MoEConfig
from moe_jax.moe.sums import SumOf


class BalanceBias(nnx.Variable):
    """[A], added to the scores when experts are selected, never to the gates. No gradient reaches it: the training step
    updates it from sums over the whole batch, so it is no `nnx.Param`. It is replicated on the mesh.
    """


class BiasUpdate(NamedTuple):
    """How the bias of each layer follows from a step."""

    evidence: SumOf  # what it looks at
    moved: Callable[[Array, Array, MoEConfig], Array]  # (bias [*M, A], global evidence [*M, ...], settings) -> bias
    routers: tuple[str, ...] = ()  # that it is made for; (): all that have a bias


def updated_bias(
    bias: Float[Array, "*M A"], evidence: Float[Array, "..."], step: Int[Array, ""], moe: MoEConfig, update: BiasUpdate
) -> Float[Array, "*M A"]:
    """The bias after a step with this evidence, summed over all tokens.

    It moves in the first `moe.bias_steps` steps (0: in all), `step` counting from 0.
    """
    moved = update.moved(bias, evidence, moe).astype(bias.dtype)
    return moved if moe.bias_steps == 0 else jnp.where(step < moe.bias_steps, moved, bias)
