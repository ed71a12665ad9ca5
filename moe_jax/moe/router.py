"""Routers: which experts a token goes to, and with what weight. Here is what all have in common.

The routers themselves are in `moe_jax/moe/routers/`. The decision is a value, a `Routing`; nothing moves here.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from moe_jax.config.schema import MoEConfig
from moe_jax.moe.bias_updates import BalanceBias
from moe_jax.moe.context import Context
from moe_jax.moe.penalties import PENALTIES
from moe_jax.moe.routing import Choices, Routing
from moe_jax.parallel.sharding import gather, param

BIAS_OPTIONS = frozenset(
    {"bias_rate", "balance_bias", "bias_update", "bias_steps"}
)  # of routers that select by score plus bias
CARRY_SLOTS = ("capacity", "einsum")  # dispatchers that carry single choices to slots
CARRY_CHOICES = (*CARRY_SLOTS, "dropless")  # those that carry single choices


def columns(moe: MoEConfig) -> int:
    """A: the experts that a router chooses among, null experts included."""
    return moe.num_experts + moe.null_experts


class Router(nnx.Module):
    """Router weights, and the way from a token to its logits. Subclasses choose in `choose`.

    Logits are in float32 at the highest matmul precision, whatever the model computes in: bfloat16 logits make training
    diverge (Switch Transformer, section 2.4; `moe.router_dtype` reproduces it), and float32 matmuls are not float32 on
    TPU and GPU by default.

    A NaN among a token's logits, where a router has any, makes all its gates NaN (Soft MoE: those of the whole group).
    Which experts it goes to then means nothing, and the loss, NaN too, says so.
    """

    paper: ClassVar[str]  # where it comes from, with the equation
    required_top_k: ClassVar[int | None] = None  # None: any number of choices
    least_top_k: ClassVar[int] = 1
    causal: ClassVar[bool] = True  # False: in training a token's choices depend on later tokens
    causal_in_evaluation: ClassVar[bool] = True  # False: they do in evaluation
    gates_input: ClassVar[bool] = False  # the experts' inputs are multiplied with gates
    fills_slots: ClassVar[bool] = False  # every slot is used and nothing is dropped: E * C / T experts a token
    dispatchers: ClassVar[tuple[str, ...]] = CARRY_CHOICES  # that can carry its decisions; "auto" is the first
    options: ClassVar[frozenset[str]] = frozenset(  # fields of MoEConfig that some routers use, this one among them
        {
            *("jitter", "router_bias", "router_dtype", "temperature", "final_temperature", "temperature_steps"),
            *("z_loss", "entropy_loss", "penalty", "penalty_loss"),
        }
    )
    fixed_fields: ClassVar[Mapping[str, object]] = {}  # other fields, and the only value that it works with

    def __init__(
        self, d_model: int, moe: MoEConfig, init: nnx.Initializer, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ):
        self.moe = moe
        size = columns(moe)
        self.weight = param(rngs, (d_model, size), ("embed", None), init, dtype)
        self.bias = param(rngs, (size,), (None,), nnx.initializers.zeros, dtype) if moe.router_bias else None
        self.balance_bias = BalanceBias(jnp.zeros((size,), dtype)) if self.has_balance_bias(moe) else None

    @classmethod
    def has_balance_bias(cls, moe: MoEConfig) -> bool:
        """Whether a layer of this router has a balance bias, that moves or stays."""
        return (moe.bias_rate > 0 or moe.balance_bias) and "bias_rate" in cls.options

    @classmethod
    def check(cls, moe: MoEConfig, name_of: Mapping[str, str]) -> None:
        """Raises `ConfigError` on what this router alone cannot work with; `name_of` as in `check_router`."""

    @classmethod
    def matmul_params(cls, d_model: int, moe: MoEConfig) -> int:
        """Weights that every token is multiplied with."""
        return d_model * columns(moe)

    @classmethod
    def multiply_adds(cls, d_model: int, moe: MoEConfig) -> int:
        """Multiply-adds of a token's forward pass, in the router and, for Soft MoE, in and out of slots."""
        return cls.matmul_params(d_model, moe)

    @classmethod
    def vector_params(cls, moe: MoEConfig) -> int:
        """Weights that are only added or multiplied elementwise."""
        return columns(moe) if moe.router_bias else 0

    def __call__(self, x: Float[Array, "G T D"], context: Context) -> Routing:
        """Routes every token."""
        moe = self.moe
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        x = x.astype(dtype)
        if context.keys is not None and moe.jitter:
            x = x * draw_per_group(_jitter(moe.jitter), context.keys, x.shape[1:], x.dtype)
        x = x.astype(jnp.bfloat16 if moe.router_dtype == "bfloat16" else dtype)
        logits = _round(self.logits(x, context.step))
        choices = self.choose(x, logits, context)
        gate = jnp.where(jnp.any(jnp.isnan(logits), axis=-1, keepdims=True), jnp.nan, choices.gate)
        wanted = context.valid[..., None] & (choices.expert < moe.num_experts)
        as_float = lambda value: None if value is None else value.astype(dtype)
        passed = as_float(choices.identity_gate)
        penalised = moe.penalty_loss and "penalty" in self.options
        return Routing(
            expert=choices.expert,
            gate=_round(gate).astype(dtype),
            wanted=wanted if choices.kept is None else choices.kept & wanted,
            valid=context.valid,
            probabilities=_round(choices.probabilities).astype(dtype),
            logits=logits.astype(dtype),
            input_gate=as_float(choices.input_gate),
            identity_gate=None if passed is None else jnp.where(context.valid, passed, 0),
            smooth_load=as_float(choices.smooth_load),
            scores=as_float(choices.scores),
            bias=self.bias_of_scores(),
            penalty=PENALTIES[moe.penalty](gather(self.weight, dtype)) if penalised else None,
        )

    def logits(self, x: Float[Array, "G T D"], step: Int[Array, ""]) -> Float[Array, "G T A"]:
        """(x W + bias) / temperature, in the precision of x."""
        logits = self.affinities(x)
        if self.bias is not None:
            logits = logits + self.bias[...].astype(x.dtype)
        if self.moe.temperature == 1 and not self.moe.final_temperature:
            return logits
        return logits / self._temperature(step).astype(x.dtype)

    def affinities(self, x: Float[Array, "G T D"]) -> Float[Array, "G T A"]:
        """x W: how much a token and an expert have in common, before the trained bias and the temperature."""
        return project(x, self.weight)

    def choose(self, x: Float[Array, "G T D"], logits: Float[Array, "G T A"], context: Context) -> Choices:
        """Experts and gates; `x` is what the logits were computed from."""
        raise NotImplementedError

    def bias_of_scores(self) -> Float[Array, "A"] | None:
        """The balance bias, where there is one."""
        return None if self.balance_bias is None else self.balance_bias[...]

    def _temperature(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """From `moe.temperature` at step 0 to `moe.final_temperature` at the last of `moe.temperature_steps`."""
        first = self.moe.temperature
        last = self.moe.final_temperature or first
        done = jnp.clip(step / max(self.moe.temperature_steps - 1, 1), 0, 1)
        return first + (last - first) * done


def project(x: Float[Array, "G T D"], weight: nnx.Param) -> Float[Array, "G T A"]:
    """x W in the precision of x."""
    return jnp.einsum("gtd,dn->gtn", x, gather(weight, x.dtype), precision=lax.Precision.HIGHEST)


def l2_normalized(x: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """x over its l2 norm along `axis`, which is kept from 0 by Soft MoE's 1e-6; zeros have a gradient too."""
    squared = jnp.sum(jnp.square(x), axis=axis, keepdims=True)
    return x / (jnp.sqrt(jnp.maximum(squared, jnp.finfo(x.dtype).tiny)) + 1e-6)


def draw_per_group(draw: Callable, keys: Key[Array, "G"], shape: tuple[int, ...], dtype: Any) -> Array:
    """One draw of `shape` for each group from its own key, so that noise does not depend on which device has it."""
    return jax.vmap(lambda key: draw(key, shape, dtype))(keys)


def second_keys(keys: Key[Array, "G"]) -> Key[Array, "G"]:
    """Keys for a router's own draws, apart from those of the jitter."""
    return jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)


def _round(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Makes an array of type bfloat16 hold bfloat16 values: XLA keeps more digits inside a fusion."""
    if x.dtype != jnp.bfloat16:
        return x
    return lax.reduce_precision(x.astype(jnp.float32), exponent_bits=8, mantissa_bits=7).astype(x.dtype)


def _jitter(size: float) -> Callable:
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, 1 - size, 1 + size)
