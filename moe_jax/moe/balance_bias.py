"""The expert bias of balancing without an auxiliary loss (Wang et al. 2024; DeepSeek-V3)."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from moe_jax.config.schema import MoEConfig

BIAS_UPDATES = ("sign", "proportional")


class BalanceBias(nnx.Variable):
    """[E], added to the scores when experts are selected, never to the gates. No gradient reaches it: the training step
    updates it from the counts of the whole batch, so it is no `nnx.Param`. Replicated on the mesh.
    """


def updated_bias(
    bias: Float[Array, "*M E"], assigned: Float[Array, "*M E"], step: Int[Array, ""], moe: MoEConfig
) -> Float[Array, "*M E"]:
    """The bias after a step in which the experts of each layer were chosen `assigned` times, over all tokens.

    With the error mean(assigned) - assigned_i, b_i grows by moe.bias_rate times the error's sign (Wang et al. 2024,
    algorithm 1; DeepSeek-V3, section 2.1.2), or times the error itself in multiples of the mean (proportional; the
    variant of Wang et al., section 4.3, for a batch of any size). It moves in the first moe.bias_steps steps (0: in
    all), `step` counting from 0.
    """
    mean = jnp.mean(assigned, axis=-1, keepdims=True)
    error = mean - assigned
    change = jnp.sign(error) if moe.bias_update == "sign" else error / jnp.where(mean > 0, mean, 1)
    rate = jnp.where((moe.bias_steps == 0) | (step < moe.bias_steps), moe.bias_rate, 0.0)
    return bias + (rate * change).astype(bias.dtype)
