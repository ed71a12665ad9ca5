"""Soft MoE: every slot is a weighted mean of all tokens, every token a weighted mean of all slots."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from moe_jax.config.capacity import capacity_of
from moe_jax.config.rules import ConfigError
from moe_jax.config.schema import MoEConfig
from moe_jax.moe.context import Context
from moe_jax.moe.router import Router, l2_normalized
from moe_jax.moe.routing import Mixing, Routing
from moe_jax.parallel.sharding import gather, param


class Soft(Router):
    """Logits = X Phi, D = softmax over tokens, C = softmax over slots; the slots' inputs are D^T X and the output is
    C Y for the experts' outputs Y.

    For the logits alone X is l2-normalised by token, Phi by slot and times a trained scale (section 2.3). Phi is
    [D, E * C] with C from `moe.capacity_factor` and `moe.top_k`, which do nothing but set the number of slots; those of
    evaluation are the same. There is nothing to balance or to drop, and no plan: T * E * C weights of each kind. Every
    token depends on the whole group: not causal.

    Its statistics go by combine weight: an expert's load is the weight that tokens give its slots.
    """

    paper: ClassVar[str] = "Soft MoE (Puigcerver et al. 2023), sections 2 and 2.3"
    causal: ClassVar[bool] = False
    causal_in_evaluation: ClassVar[bool] = False
    fills_slots: ClassVar[bool] = True
    dispatchers: ClassVar[tuple[str, ...]] = ("soft",)
    options: ClassVar[frozenset[str]] = frozenset()
    fixed_fields: ClassVar[Mapping[str, object]] = {
        "balance_loss": 0.0,
        "balance_scope": "micro_batch",
        "importance_loss": 0.0,
        "drop_order": "position",
    }

    def __init__(
        self, d_model: int, moe: MoEConfig, init: nnx.Initializer, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ):
        self.moe = moe
        self.phi = param(rngs, (d_model, num_slots(moe)), ("embed", None), init, dtype)
        self.scale = param(rngs, (), (), nnx.initializers.ones, dtype)

    @classmethod
    def check(cls, moe, name_of):
        """See `Router.check`. Slots are trained weights: evaluation has no others."""
        trained, evaluated = num_slots(moe), num_slots(moe, train=False)
        if evaluated != trained:
            raise ConfigError(
                f"moe.eval_capacity_factor={moe.eval_capacity_factor} gives {evaluated} slots with "
                f"{name_of['router']}='soft', whose {trained} slots are trained: give training, evaluation and every "
                "layer one capacity factor"
            )

    @classmethod
    def matmul_params(cls, d_model, moe):
        """See `Router.matmul_params`."""
        return d_model * num_slots(moe)

    @classmethod
    def multiply_adds(cls, d_model, moe):
        """See `Router.multiply_adds`: for the logits, into slots and out of them."""
        return 3 * d_model * num_slots(moe)

    @classmethod
    def vector_params(cls, moe):
        """See `Router.vector_params`."""
        return 1

    def __call__(self, x: Float[Array, "G T D"], context: Context) -> Routing:
        """Weights of every token, in float32 at the highest matmul precision, like other routers' logits."""
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        phi = gather(self.scale, dtype) * l2_normalized(gather(self.phi, dtype), 0)
        logits = jnp.einsum("gtd,ds->gts", l2_normalized(x.astype(dtype), -1), phi, precision=lax.Precision.HIGHEST)
        valid = context.valid[..., None]
        into_slots = jax.nn.softmax(jnp.where(valid, logits, jnp.finfo(dtype).min), axis=1) * valid
        # The softmax of these is an expert's combine weight: the sum of its slots' weights.
        expert_logits = jax.nn.logsumexp(logits.reshape(*logits.shape[:2], self.moe.num_experts, -1), axis=-1)
        weight = jax.nn.softmax(expert_logits)
        return Routing(
            expert=jnp.argmax(weight, axis=-1)[..., None],
            gate=jnp.max(weight, axis=-1, keepdims=True),
            wanted=valid,
            valid=context.valid,
            probabilities=weight,
            logits=expert_logits,
            share=weight,
            mixing=Mixing(into_slots, jax.nn.softmax(logits) * valid),
        )


def num_slots(moe: MoEConfig, train: bool = True) -> int:
    """S = E * C, with the C of training or of evaluation."""
    return moe.num_experts * capacity_of(moe, train)
