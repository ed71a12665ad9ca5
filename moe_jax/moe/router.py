"""Routers: which experts a token goes to, and with what weight. Here is what all have in common.

The routers themselves are in `moe_jax/moe/routers/`. The decision is a value, a `Routing`; nothing moves here.
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
from moe_jax.moe.balance_bias import BalanceBias
from moe_jax.parallel.sharding import gather, param

BIAS_OPTIONS = frozenset({"bias_rate", "bias_update", "bias_steps"})  # of routers that select by score plus bias


class TokenInfo(NamedTuple):
    """What a router may look at besides the tokens' vectors. In a layer [B, L], in a router [G, T]."""

    ids: Int[Array, "*T"]  # vocabulary indices
    valid: Bool[Array, "*T"]  # False: padding
    keys: Key[Array, "G"] | None  # noise of each group, for this layer; None: no noise (evaluation)
    step: Int[Array, ""]  # of training
    train: bool = False  # for routers that choose differently in training; the layer sets it
    capacity: int | None = None  # slots of each expert in a group; the layer sets it


def plain_tokens(shape: tuple[int, ...]) -> TokenInfo:
    """Valid tokens of id 0 at step 0, without noise."""
    return TokenInfo(jnp.zeros(shape, jnp.int32), jnp.ones(shape, bool), None, jnp.int32(0))


class Routing(NamedTuple):
    """The decision for every token of every group: K choices, the one that the router prefers first (rank 0).

    N: the routed experts E and, behind them, the null experts, where a choice leads nowhere.
    """

    expert: Int[Array, "G T K"]  # below N; N: no choice, which is not wanted and counted nowhere
    gate: Float[Array, "G T K"]  # weight of the choice's output in the sum
    wanted: Bool[Array, "G T K"]  # False: a padding token, a null expert, or a choice that the router itself lets go
    valid: Bool[Array, "G T"]  # False: a padding token, which takes no slot and counts in no statistic
    probabilities: Float[Array, "G T N"]  # sum to 1; what the balance loss is computed from
    logits: Float[Array, "G T N"]
    smooth_load: Float[Array, "G T E"] | None = None  # probability of being chosen, over the noise; noisy_top_k only


class Choices(NamedTuple):
    """What a router decides, before padding and null experts are taken out: fields of `Routing`."""

    expert: Int[Array, "G T K"]
    gate: Float[Array, "G T K"]
    kept: Bool[Array, "G T K"]  # False: the router lets this choice go
    probabilities: Float[Array, "G T N"]
    smooth_load: Float[Array, "G T E"] | None = None


def columns(moe: MoEConfig) -> int:
    """N = E + null experts."""
    return moe.num_experts + moe.null_experts


def pick(values: Float[Array, "G T N"], expert: Int[Array, "G T K"]) -> Float[Array, "G T K"]:
    """Each token's values at its experts (0 at N), by comparison: then the gradient is no scatter either."""
    chosen = expert[..., None] == jnp.arange(values.shape[-1])
    return jnp.sum(jnp.where(chosen, values[..., None, :], 0), axis=-1)


def draw_per_group(draw, keys: Key[Array, "G"], shape: tuple[int, ...], dtype) -> Array:
    """One draw of `shape` for each group from its own key, so that noise does not depend on which device has it."""
    return jax.vmap(lambda key: draw(key, shape, dtype))(keys)


def second_keys(keys: Key[Array, "G"]) -> Key[Array, "G"]:
    """Keys for a router's own draws, apart from those of the jitter."""
    return jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)


class Router(nnx.Module):
    """Router weights, and the way from a token to its logits. Subclasses choose in `choose`.

    In float32 at the highest matmul precision, whatever the model computes in: bfloat16 logits make training diverge
    (Switch Transformer, section 2.4; `moe.router_dtype` reproduces it), and float32 matmuls are not float32 on TPU and
    GPU by default.

    A NaN among a token's logits, where a router has any, makes all its gates NaN (Soft MoE: the whole group). Which
    experts it goes to then means nothing, and the loss, NaN too, says so.
    """

    paper: ClassVar[str]  # where it comes from, with the equation
    required_top_k: ClassVar[int | None] = None  # None: any number of choices
    least_top_k: ClassVar[int] = 1
    causal: ClassVar[bool] = True  # False: in training a token's choices depend on later tokens
    causal_in_evaluation: ClassVar[bool] = True  # likewise, in evaluation
    fills_slots: ClassVar[bool] = False  # every slot is used and nothing is dropped: E * C / T experts a token
    options: ClassVar[frozenset[str]] = frozenset(  # fields of MoEConfig that some routers use, this one among them
        {"jitter", "router_bias", "router_dtype", "temperature", "final_temperature", "temperature_steps", "z_loss"}
    )
    fixed_fields: ClassVar[Mapping[str, object]] = {}  # other fields, and the only value that it works with

    def __init__(
        self, d_model: int, moe: MoEConfig, init: nnx.Initializer, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ):
        self.moe = moe
        size = columns(moe)
        self.weight = param(rngs, (d_model, size), ("embed", None), init, dtype)
        self.bias = param(rngs, (size,), (None,), nnx.initializers.zeros, dtype) if moe.router_bias else None
        self.balance_bias = BalanceBias(jnp.zeros((size,), dtype)) if moe.bias_rate > 0 else None

    @classmethod
    def check(cls, moe: MoEConfig, top_k: str, num_experts: str) -> None:
        """Raises `Violation` on what this router alone cannot work with. `top_k` and `num_experts` name the fields that
        a layer has them from.
        """

    @classmethod
    def matmul_params(cls, d_model: int, moe: MoEConfig) -> int:
        """Weights that every token is multiplied with."""
        return d_model * columns(moe)

    @classmethod
    def multiply_adds(cls, d_model: int, moe: MoEConfig) -> int:
        """Of a token's forward pass, in the router and, for Soft MoE, in and out of slots."""
        return cls.matmul_params(d_model, moe)

    @classmethod
    def vector_params(cls, moe: MoEConfig) -> int:
        """Weights that are only added or multiplied elementwise."""
        return columns(moe) if moe.router_bias else 0

    def __call__(self, x: Float[Array, "G T D"], info: TokenInfo) -> Routing:
        """Routes every token."""
        moe = self.moe
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        x = x.astype(dtype)
        if info.keys is not None and moe.jitter:
            x = x * draw_per_group(_jitter(moe.jitter), info.keys, x.shape[1:], x.dtype)
        x = x.astype(jnp.bfloat16 if moe.router_dtype == "bfloat16" else dtype)
        logits = _round(self.logits(x, info.step))
        choices = self.choose(x, logits, info)
        gate = jnp.where(jnp.any(jnp.isnan(logits), axis=-1, keepdims=True), jnp.nan, choices.gate)
        wanted = choices.kept & info.valid[..., None] & (choices.expert < moe.num_experts)
        return Routing(
            expert=choices.expert,
            gate=_round(gate).astype(dtype),
            wanted=wanted,
            valid=info.valid,
            probabilities=_round(choices.probabilities).astype(dtype),
            logits=logits.astype(dtype),
            smooth_load=None if choices.smooth_load is None else choices.smooth_load.astype(dtype),
        )

    def logits(self, x: Float[Array, "G T D"], step: Int[Array, ""]) -> Float[Array, "G T N"]:
        """(x W + bias) / temperature, in the precision of x."""
        logits = project(x, self.weight)
        if self.bias is not None:
            logits = logits + self.bias[...].astype(x.dtype)
        if self.moe.temperature == 1 and not self.moe.final_temperature:
            return logits
        return logits / self._temperature(step).astype(x.dtype)

    def choose(self, x: Float[Array, "G T D"], logits: Float[Array, "G T N"], info: TokenInfo) -> Choices:
        """Experts and gates; `x` is what the logits were computed from."""
        raise NotImplementedError

    def _temperature(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """From `moe.temperature` at step 0 to `moe.final_temperature` at the last of `moe.temperature_steps`."""
        first = self.moe.temperature
        last = self.moe.final_temperature or first
        done = jnp.clip(step / max(self.moe.temperature_steps - 1, 1), 0, 1)
        return first + (last - first) * done


def project(x: Float[Array, "G T D"], weight: nnx.Param) -> Float[Array, "G T N"]:
    """x W in the precision of x."""
    return jnp.einsum("gtd,dn->gtn", x, gather(weight, x.dtype), precision=lax.Precision.HIGHEST)


def _round(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """What is of type bfloat16 also in value: XLA keeps more digits inside a fusion."""
    if x.dtype != jnp.bfloat16:
        return x
    return lax.reduce_precision(x.astype(jnp.float32), exponent_bits=8, mantissa_bits=7).astype(x.dtype)


def _jitter(size: float):
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, 1 - size, 1 + size)
