"""The feed-forward network, dense or for many experts at once: one batched matmul a projection."""

from collections.abc import Callable

import jax
from flax import nnx
from jaxtyping import Array, Float

from moe_jax.config.counting import GATED
from moe_jax.parallel.sharding import gather, param

ACTIVATIONS: dict[str, Callable] = {
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "swiglu": jax.nn.silu,
    "geglu": jax.nn.gelu,
}


class FeedForward(nnx.Module):
    """down(act(up(x))), or gated, down(act(gate(x)) * up(x)) (Shazeer 2020); no biases.

    The output is this device's part of a sum over the mesh axis `tensor`, along which F is cut: the caller reduces.
    """

    def __init__(self, d_model: int, d_ff: int, activation: str, init: nnx.Initializer, rngs: nnx.Rngs, dtype):
        self.activation = activation
        names = ("gate", "up") if activation in GATED else ("up",)
        for name in names:
            setattr(self, name, param(rngs, (d_model, d_ff), ("embed", "mlp"), init, dtype))
        self.down = param(rngs, (d_ff, d_model), ("mlp_in", None), init, dtype)

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Applies the network to the last dimension."""
        return _network(self, x)


class Experts(nnx.Module):
    """E feed-forward networks with weights of their own; this device has those of its place on the axis `expert`."""

    def __init__(
        self, num_experts: int, d_model: int, d_ff: int, activation: str, init: nnx.Initializer, rngs: nnx.Rngs, dtype
    ):
        self.activation = activation
        names = ("gate", "up") if activation in GATED else ("up",)
        for name in names:
            shape = (num_experts, d_model, d_ff)
            setattr(self, name, param(rngs, shape, ("expert", "expert_embed", "expert_mlp"), init, dtype))
        self.down = param(rngs, (num_experts, d_ff, d_model), ("expert", "expert_mlp_in", None), init, dtype)

    def __call__(self, buffers: Float[Array, "G E C D"]) -> Float[Array, "G E C D"]:
        """Applies expert e to the rows of buffers[:, e]; partial sums over `tensor`, as in `FeedForward`."""
        groups, experts, slots, size = buffers.shape
        rows = buffers.swapaxes(0, 1).reshape(experts, groups * slots, size)
        return _network(self, rows).reshape(experts, groups, slots, size).swapaxes(0, 1)


def _network(weights: FeedForward | Experts, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    activate = ACTIVATIONS[weights.activation]
    up = x @ gather(weights.up, x.dtype)
    hidden = activate(x @ gather(weights.gate, x.dtype)) * up if weights.activation in GATED else activate(up)
    return hidden @ gather(weights.down, x.dtype)
