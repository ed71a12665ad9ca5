"""Routers that learn nothing: what any learned one has to beat. They have no weights and do no work."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt32

from moe_jax.config.schema import MoEConfig
from moe_jax.moe.context import Context
from moe_jax.moe.router import Router, draw_per_group
from moe_jax.moe.routing import Routing

SEED = 0x5EED  # of every hash: the same experts in every run


class Unlearned(Router):
    """The K experts with the highest lots, gates 1 / K.

    The probabilities are 1 / K at the chosen experts: the balance loss is then E * sum_e f_e^2, 1 where loads are
    equal. It is shown but has no weight: it has no gradient, and neither has anything else here. The logits are zeros.
    """

    options: ClassVar[frozenset[str]] = frozenset()
    fixed_fields: ClassVar[Mapping[str, object]] = {
        "balance_loss": 0.0,
        "balance_scope": "micro_batch",
        "importance_loss": 0.0,
    }

    def __init__(
        self, d_model: int, moe: MoEConfig, init: nnx.Initializer, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ):
        self.moe = moe

    @classmethod
    def matmul_params(cls, d_model, moe):
        """See `Router.matmul_params`."""
        return 0

    def __call__(self, x: Float[Array, "G T D"], context: Context) -> Routing:
        """Routes every token without a look at it."""
        experts, k = self.moe.num_experts, self.moe.top_k
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        expert = highest(self.lots(context), k)
        probabilities = jnp.sum(jax.nn.one_hot(expert, experts, dtype=dtype), axis=-2) / k
        return Routing(
            expert=expert,
            gate=jnp.full(expert.shape, 1 / k, dtype),
            wanted=jnp.broadcast_to(context.valid[..., None], expert.shape),
            valid=context.valid,
            probabilities=probabilities,
            logits=jnp.zeros_like(probabilities),
        )

    def lots(self, context: Context) -> UInt32[Array, "G T E"]:
        """A number for each token and expert; with equal chances for every order of the experts."""
        raise NotImplementedError


class Hash(Unlearned):
    """A token's experts are fixed by its vocabulary index: those whose hashes of it are the highest, in every layer the
    same ones.

    The paper draws a table over the vocabulary before training. Here it is never stored: a hash of index and expert is
    as good as a draw.
    """

    paper: ClassVar[str] = "Hash layers (Roller et al. 2021), section 3.1, random hash"

    def lots(self, context):
        """See `Unlearned.lots`."""
        return lots_of_ids(context.ids, self.moe.num_experts)


class Random(Unlearned):
    """Uniform over the experts: drawn anew for each token and layer in training; in evaluation hashed from its place in
    the group and its vocabulary index, so that an evaluation can be repeated (then the same in every layer).
    """

    paper: ClassVar[str] = "no paper's: uniform draws without replacement, what any choice has to beat"

    def lots(self, context):
        """See `Unlearned.lots`."""
        experts, tokens = self.moe.num_experts, context.ids.shape[-1]
        if context.keys is not None:
            return draw_per_group(jax.random.bits, context.keys, (tokens, experts), jnp.uint32)
        place = jnp.arange(tokens) if context.place is None else context.place
        return hash_words(context.ids[..., None], place[..., None], jnp.arange(experts))


def highest(lots: UInt32[Array, "G T E"], k: int) -> Int[Array, "G T K"]:
    """The k experts with the highest lots."""
    return lax.top_k((lots >> 1).astype(jnp.int32), k)[1]


def lots_of_ids(ids: Int[Array, "G T"], experts: int) -> UInt32[Array, "G T E"]:
    """The lots of `hash`: a hash of each token's vocabulary index and expert."""
    return hash_words(ids[..., None], jnp.arange(experts))


def hash_words(*words: Int[Array, "..."]) -> UInt32[Array, "..."]:
    """32 bits that look random, from integers that broadcast: each is added in turn and mixed (MurmurHash3's finaliser,
    Appleby 2011).
    """
    state = jnp.uint32(SEED)
    for word in words:
        state = state + word.astype(jnp.uint32) * jnp.uint32(0x9E3779B9)  # the odd number nearest 2^32 / golden ratio
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            state = (state ^ (state >> shift)) * jnp.uint32(factor)
        state = state ^ (state >> 16)
    return state
