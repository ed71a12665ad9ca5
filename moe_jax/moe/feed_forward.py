"""The feed-forward network, dense or for many experts at once: one batched matmul a projection."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from moe_jax.parallel.sharding import gather, param

ACTIVATIONS: dict[str, Callable] = {
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "swiglu": jax.nn.silu,
    "geglu": jax.nn.gelu,
}


GATED = frozenset({"swiglu", "geglu"})  # activations of networks with three matrices


def feed_forward_params(d_model: int, d_ff: int, activation: str) -> int:
    """Weights of one feed-forward network or one expert; there are no biases."""
    return (3 if activation in GATED else 2) * d_model * d_ff


class Weights(NamedTuple):
    """The matrices of a feed-forward network, or of this device's experts, ready to multiply with."""

    up: Float[Array, "*E D F"]
    gate: Float[Array, "*E D F"] | None  # of a gated network
    down: Float[Array, "*E F D"]


class FeedForward(nnx.Module):
    """down(act(up(x))), or gated, down(act(gate(x)) * up(x)) (Shazeer 2020); no biases.

    The output is this device's part of a sum over the mesh axis `tensor`, along which F is cut: the caller reduces.
    """

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
    """E feed-forward networks with weights of their own; this device has those of its place on the axis `expert`."""

    def __init__(
        self,
        num_experts: int,
        d_model: int,
        d_ff: int,
        activation: str,
        init: nnx.Initializer,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
    ):
        self.activation = activation
        shape, axes = (num_experts, d_model, d_ff), ("expert", "expert_embed", "expert_mlp")
        inner = lambda: param(rngs, shape, axes, init, dtype)
        self.gate = inner() if activation in GATED else None
        self.up = inner()
        self.down = param(rngs, (num_experts, d_ff, d_model), ("expert", "expert_mlp_in", None), init, dtype)

    def gathered(self, dtype: DTypeLike) -> Weights:
        """This device's experts. Gather once, also where the buffers come in several pieces."""
        return _gathered(self, dtype)

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


def _gathered(module: FeedForward | Experts, dtype: DTypeLike) -> Weights:
    gate = gather(module.gate, dtype) if module.gate is not None else None
    return Weights(gather(module.up, dtype), gate, gather(module.down, dtype))


def _network(
    weights: Weights, activation: str, x: Float[Array, "*B D"], mask: Float[Array, "*B F"] | None = None
) -> Float[Array, "*B D"]:
    activate = ACTIVATIONS[activation]
    up = x @ weights.up
    hidden = activate(up) if weights.gate is None else activate(x @ weights.gate) * up
    return (hidden if mask is None else hidden * mask) @ weights.down
