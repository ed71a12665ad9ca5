"""The feed-forward network, dense or for many experts at once: one batched matmul a projection."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from moe_jax.moe.grouped_matmul import grouped_matmul
from moe_jax.moe.lora import Pair, Product, adapter_of
from moe_jax.moe.packed import Pieces, of_expert
from moe_jax.parallel.collectives import once, varying
from moe_jax.parallel.mesh import EXPERT, TENSOR
from moe_jax.parallel.sharding import gather, param

CLAMP, STEEPNESS = 7.0, 1.702  # of clamped_swiglu


def clamped_swiglu(gate: Float[Array, "*B F"], up: Float[Array, "*B F"]) -> Float[Array, "*B F"]:
    """gate * sigmoid(1.702 gate) * (up + 1), the gate at most 7 and up within [-7, 7] (GPT-OSS, OpenAI 2025, the
    published model code).
    """
    gate = jnp.minimum(gate, CLAMP)
    return gate * jax.nn.sigmoid(STEEPNESS * gate) * (jnp.clip(up, -CLAMP, CLAMP) + 1)


PLAIN: dict[str, Callable] = {"relu": jax.nn.relu, "gelu": jax.nn.gelu}  # act(up), of networks with two matrices
GATED: dict[str, Callable] = {  # act(gate, up), of networks with three
    "swiglu": lambda gate, up: jax.nn.silu(gate) * up,
    "geglu": lambda gate, up: jax.nn.gelu(gate) * up,
    "clamped_swiglu": clamped_swiglu,
}
ACTIVATIONS = PLAIN | GATED

MATRICES = ("up", "gate", "down")


def feed_forward_matrices(d_model: int, d_ff: int, activation: str) -> dict[str, tuple[int, int]]:
    """The shapes of the matrices of one feed-forward network or one expert, by name."""
    inner = ("up", "gate") if activation in GATED else ("up",)
    return {name: (d_model, d_ff) for name in inner} | {"down": (d_ff, d_model)}


def feed_forward_params(d_model: int, d_ff: int, activation: str) -> int:
    """Weights of the matrices of one feed-forward network or one expert."""
    return sum(rows * columns for rows, columns in feed_forward_matrices(d_model, d_ff, activation).values())


def feed_forward_biases(d_model: int, d_ff: int, activation: str) -> int:
    """Biases of one expert that has them."""
    return (2 if activation in GATED else 1) * d_ff + d_model


class Biases(NamedTuple):
    """What is added behind the matrices of `Weights`; `down` is this device's part of a sum over `tensor`."""

    up: Float[Array, "E F"]
    gate: Float[Array, "E F"] | None
    down: Float[Array, "E D"]


class Adapters(NamedTuple):
    """What low-rank adapters add to the products with the matrices of `Weights`, where there is one."""

    up: Pair | None
    gate: Pair | None
    down: Pair | None


class Weights(NamedTuple):
    """The matrices of a feed-forward network, or of this device's experts, ready to multiply with."""

    up: Float[Array, "*E D F"]
    gate: Float[Array, "*E D F"] | None  # of a gated network
    down: Float[Array, "*E F D"]
    biases: Biases | None = None
    adapters: Adapters | None = None


class FeedForward(nnx.Module):
    """down(act(up(x))), or gated, down(act(gate(x), up(x))) (Shazeer 2020); no biases.

    The output is this device's part of a sum over the mesh axis `tensor`, along which F is cut: the caller reduces.
    """

    ADAPTABLE = MATRICES

    def __init__(
        self, d_model: int, d_ff: int, activation: str, init: nnx.Initializer, rngs: nnx.Rngs, dtype: DTypeLike
    ):
        self.activation = activation
        inner = lambda: param(rngs, (d_model, d_ff), ("embed", "mlp"), init, dtype)
        self.gate = inner() if activation in GATED else None
        self.up = inner()
        self.down = param(rngs, (d_ff, d_model), ("mlp_in", None), init, dtype)

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Applies the network to the last dimension."""
        return _network(_gathered(self, x.dtype), self.activation, x)


class Experts(nnx.Module):
    """E feed-forward networks with weights of their own, with biases or without; this device has those of its place on
    the axis `expert`.
    """

    ADAPTABLE = MATRICES

    def __init__(
        self,
        num_experts: int,
        d_model: int,
        d_ff: int,
        activation: str,
        init: nnx.Initializer,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
        bias: bool = False,
    ):
        self.activation = activation
        shape, axes = (num_experts, d_model, d_ff), ("expert", "expert_embed", "expert_mlp")
        inner = lambda: param(rngs, shape, axes, init, dtype)
        self.gate = inner() if activation in GATED else None
        self.up = inner()
        self.down = param(rngs, (num_experts, d_ff, d_model), ("expert", "expert_mlp_in", None), init, dtype)
        zeros = lambda size, axis: param(rngs, (num_experts, size), ("expert", axis), nnx.initializers.zeros, dtype)
        self.gate_bias = zeros(d_ff, "expert_mlp") if bias and activation in GATED else None
        self.up_bias = zeros(d_ff, "expert_mlp") if bias else None
        self.down_bias = zeros(d_model, None) if bias else None

    def gathered(self, dtype: DTypeLike) -> Weights:
        """This device's experts. Gather once, also where the buffers come in several pieces."""
        weights = _gathered(self, dtype)
        if self.up_bias is None or self.down_bias is None:
            return weights
        gate = gather(self.gate_bias, dtype) if self.gate_bias is not None else None
        return weights._replace(
            biases=Biases(gather(self.up_bias, dtype), gate, once(gather(self.down_bias, dtype), TENSOR))
        )

    def __call__(
        self, buffers: Float[Array, "G E C D"], weights: Weights, mask: Float[Array, "G E C F"] | None = None
    ) -> Float[Array, "G E C D"]:
        """Applies expert e to the rows of buffers[:, e]; partial sums over `tensor`, as in `FeedForward`.

        `mask` multiplies the hidden layer (dropout).
        """
        groups, experts, slots, size = buffers.shape
        in_rows = lambda a: a.swapaxes(0, 1).reshape(experts, groups * slots, a.shape[-1])
        out = _network(weights, self.activation, in_rows(buffers), None if mask is None else in_rows(mask))
        return out.reshape(experts, groups, slots, size).swapaxes(0, 1)

    def of_rows(
        self,
        rows: Float[Array, "M D"],
        sizes: Int[Array, "E"],
        weights: Weights,
        implementation: str,
        mask: Float[Array, "M F"] | None = None,
    ) -> Float[Array, "M D"]:
        """The same for rows that are sorted by expert, sizes[e] for expert e, by a grouped matmul of that name; zeros
        past the last expert's rows.
        """
        product = lambda x, matrices: grouped_matmul(x, matrices, sizes, implementation)
        one = jnp.ones((rows.shape[0], 1), rows.dtype)
        add = lambda y, bias: y + product(one, bias[:, None, :])  # so that its gradient is grouped too
        return _network(weights, self.activation, rows, mask, _Arithmetic(product, add))

    def of_one(self, expert: Int[Array, ""], x: Float[Array, "1 D"]) -> Float[Array, "1 D"]:
        """One of this device's experts applied to a row, which reads no weights but its own; zeros for a number past
        the last one. For weights that are whole on their device, and have no adapters.
        """
        alike = (EXPERT, TENSOR)
        network = lambda at, x: varying(_network(self._of_expert(at, x.dtype), self.activation, x), alike)
        if isinstance(self.up[...], Pieces):
            branches = [functools.partial(network, at) for at in range(self.num_here)]
            return lax.switch(expert, [*branches, lambda x: varying(jnp.zeros_like(x), alike)], x)
        return jnp.where(expert < self.num_here, network(jnp.minimum(expert, self.num_here - 1), x), 0)

    @property
    def num_here(self) -> int:
        """The experts of this device, inside `shard_map`."""
        stored = self.up[...]
        return len(stored.parts) if isinstance(stored, Pieces) else jax.tree.leaves(stored)[0].shape[0]

    def _of_expert(self, expert: int | Int[Array, ""], dtype: DTypeLike) -> Weights:
        part = lambda weight: of_expert(weight[...], expert, dtype)
        gate = part(self.gate) if self.gate is not None else None
        weights = Weights(part(self.up), gate, part(self.down))
        if self.up_bias is None or self.down_bias is None:
            return weights
        gate = part(self.gate_bias) if self.gate_bias is not None else None
        return weights._replace(biases=Biases(part(self.up_bias), gate, once(part(self.down_bias), TENSOR)))


def _gathered(module: FeedForward | Experts, dtype: DTypeLike) -> Weights:
    gate = gather(module.gate, dtype) if module.gate is not None else None
    pairs = Adapters(*(adapter_of(module, name, dtype) for name in Adapters._fields))
    adapters = pairs if any(pair is not None for pair in pairs) else None
    return Weights(gather(module.up, dtype), gate, gather(module.down, dtype), adapters=adapters)


class _Arithmetic(NamedTuple):
    """How rows meet the matrices and the biases of their experts."""

    product: Product = jnp.matmul
    add: Product = lambda y, bias: y + bias[..., None, :]


BATCHED = _Arithmetic()


def _network(
    weights: Weights,
    activation: str,
    x: Float[Array, "*B D"],
    mask: Float[Array, "*B F"] | None = None,
    arithmetic: _Arithmetic = BATCHED,
) -> Float[Array, "*B D"]:
    apply = functools.partial(_product, weights, arithmetic)
    up = apply("up", x)
    hidden = PLAIN[activation](up) if weights.gate is None else GATED[activation](apply("gate", x), up)
    return apply("down", hidden if mask is None else hidden * mask)


def _product(weights: Weights, arithmetic: _Arithmetic, name: str, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
    """x times one of the matrices, with what its adapter and its bias add."""
    y = arithmetic.product(x, getattr(weights, name))
    if weights.adapters is not None and (adapter := getattr(weights.adapters, name)) is not None:
        y += adapter(x, arithmetic.product)
    return y if weights.biases is None else arithmetic.add(y, getattr(weights.biases, name))
