"""Routers: which experts a token goes to, and with what weight.

Add a router by writing it and naming it in `ROUTERS`. The decision is a value, a `Routing`; nothing moves here.
"""

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from moe_jax.config.schema import MoEConfig
from moe_jax.parallel.sharding import gather, param


class TokenInfo(NamedTuple):
    """What a router may look at besides the tokens' vectors. In a layer [B, L], in a router [G, T]."""

    ids: Int[Array, "*T"]  # vocabulary indices
    valid: Bool[Array, "*T"]  # False: padding
    keys: Key[Array, "G"] | None  # noise of each group, for this layer; None: no noise (evaluation)
    step: Int[Array, ""]  # of training
    capacity: int | None = None  # slots of each expert in a group; the layer sets it


def plain_tokens(shape: tuple[int, ...]) -> TokenInfo:
    """Valid tokens of id 0 at step 0, without noise."""
    return TokenInfo(jnp.zeros(shape, jnp.int32), jnp.ones(shape, bool), None, jnp.int32(0))


class Routing(NamedTuple):
    """The decision for every token of every group: K choices in descending order of probability (rank 0 first)."""

    expert: Int[Array, "G T K"]  # E, one past the last: no choice, counted nowhere (and not wanted)
    gate: Float[Array, "G T K"]  # weight of the choice's output in the sum
    wanted: Bool[Array, "G T K"]  # False: a padding token, or a choice that the router itself lets go
    valid: Bool[Array, "G T"]  # False: a padding token, which takes no slot and counts in no statistic
    probabilities: Float[Array, "G T E"]
    logits: Float[Array, "G T E"]


def top_k_of(logits: Float[Array, "G T E"], k: int) -> tuple[Int[Array, "G T K"], Float[Array, "G T K"]]:
    """The k experts of the highest logits (ties: the lower index first) and their softmax probabilities.

    Chosen by logits, since probabilities can underflow to equal zeros; picked by a product with a one-hot matrix, whose
    gradient is a product too and not a scatter.
    """
    _, expert = lax.top_k(lax.stop_gradient(logits), k)
    picked = jax.nn.one_hot(expert, logits.shape[-1], dtype=logits.dtype)
    return expert, jnp.sum(picked * jax.nn.softmax(logits)[..., None, :], axis=-1)


class Router(nnx.Module):
    """Router weights, and what all token-choice routers share. Subclasses choose in `select`."""

    required_top_k: ClassVar[int | None] = None  # None: any number of choices
    fills_slots: ClassVar[bool] = False  # every slot is used and nothing is dropped: E * C / T experts a token
    fixed_fields: ClassVar[Mapping[str, object]] = {}  # of MoEConfig that it makes no use of: the value they must have

    def __init__(
        self, d_model: int, moe: MoEConfig, init: nnx.Initializer, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ):
        self.moe = moe
        self.weight = param(rngs, (d_model, moe.num_experts), ("embed", None), init, dtype)

    def __call__(self, x: Float[Array, "G T D"], info: TokenInfo) -> Routing:
        """Routes every token."""
        logits = self.logits(x, info)
        probabilities = jax.nn.softmax(logits)
        expert, gate, kept = self.select(logits, info.keys)
        return Routing(expert, gate, kept & info.valid[..., None], info.valid, probabilities, logits)

    def logits(self, x: Float[Array, "G T D"], info: TokenInfo) -> Float[Array, "G T E"]:
        """Scores of every token for every expert.

        In float32 at the highest matmul precision, whatever the model computes in: bfloat16 logits make training
        diverge (Switch Transformer, section 2.4), and float32 matmuls are not float32 on TPU and GPU by default.
        """
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        x = x.astype(dtype)
        if info.keys is not None and self.moe.jitter:
            x = x * _per_group(_jitter(self.moe.jitter), info.keys, x.shape[1:], dtype)
        return jnp.einsum("gtd,de->gte", x, gather(self.weight, dtype), precision=lax.Precision.HIGHEST)

    def select(
        self, logits: Float[Array, "G T E"], keys: Key[Array, "G"] | None
    ) -> tuple[Int[Array, "G T K"], Float[Array, "G T K"], Bool[Array, "G T K"]]:
        """Experts, gates, and which of the choices the router keeps."""
        raise NotImplementedError


class Switch(Router):
    """Switch Transformer (Fedus et al. 2021, equation 2): the most probable expert, its probability as gate.

    The probability is not divided by the sum over the choices: that sum is itself, the gate would be the constant 1 and
    the router would learn nothing from the task.
    """

    required_top_k = 1

    def select(self, logits, keys):
        """See `Router.select`."""
        expert, gate = top_k_of(logits, 1)
        return expert, gate, jnp.ones_like(expert, bool)


class GShard(Router):
    """GShard (Lepikhin et al. 2020, algorithm 1) and GLaM: the two most probable experts, gates divided by their sum.

    `moe.second_expert` keeps the second expert always, from the gate `moe.second_threshold` on, or at random with
    probability min(1, 2 * its gate) in training, always in evaluation.
    """

    required_top_k = 2

    def select(self, logits, keys):
        """See `Router.select`."""
        expert, gate = top_k_of(logits, 2)
        gate = gate / jnp.sum(gate, axis=-1, keepdims=True)
        second = gate[..., 1]
        match self.moe.second_expert:
            case "threshold":
                keep = second >= self.moe.second_threshold
            case "random" if keys is not None:
                draws = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
                keep = _per_group(jax.random.uniform, draws, second.shape[1:], gate.dtype) < 2 * second
            case _:
                keep = jnp.ones_like(second, bool)
        return expert, gate, jnp.stack([jnp.ones_like(keep), keep], axis=-1)


class TopK(Router):
    """The K most probable experts of the softmax; gates raw (OLMoE) or divided by their sum (Mixtral, Qwen3)."""

    def select(self, logits, keys):
        """See `Router.select`."""
        expert, gate = top_k_of(logits, self.moe.top_k)
        if self.moe.normalize_gates:
            gate = gate / jnp.sum(gate, axis=-1, keepdims=True)
        return expert, gate, jnp.ones_like(expert, bool)


def _jitter(size: float):
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, 1 - size, 1 + size)


def _per_group(draw, keys: Key[Array, "G"], shape: tuple[int, ...], dtype) -> Float[Array, "G ..."]:
    """One draw of `shape` for each group from its own key, so that noise does not depend on which device has it."""
    return jax.vmap(lambda key: draw(key, shape, dtype))(keys)


ROUTERS: dict[str, type[Router]] = {"switch": Switch, "gshard": GShard, "top_k": TopK}
