"""The dispatcher for few tokens, as in decoding: no weights are read but those of the experts that were chosen."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from moe_jax.moe.delivery import Beside
from moe_jax.moe.dispatchers.sorted import Dropless
from moe_jax.moe.feed_forward import Experts

# Choices times experts up to which no loop goes over the choices: XLA for CPUs runs a loop's body at 0.74 of the speed
# without, and compiles a branch for each expert and choice in 20 ms.
UNROLLED = 64


class Chosen(Dropless):
    """`dropless`, one choice after another: bound by the memory that the weights of its expert are read from.

    Its experts' weights have to be whole on their device, as `moe_jax/inference/` keeps them.
    """

    trains = False

    def _of_experts(self, rows: Float[Array, "N D"], beside: Beside, experts: Experts) -> Float[Array, "N D"]:
        num_rows, entries = beside.address.shape
        x = jnp.repeat(rows, entries, axis=0)
        if beside.input_gate is not None:
            x = (x.astype(beside.input_gate.dtype) * beside.input_gate.reshape(-1, 1)).astype(rows.dtype)
        one = lambda choice: experts.of_one(choice[0], choice[1][None])[0]
        address = beside.address.reshape(-1)
        if address.size * experts.num_here <= UNROLLED:
            out = jnp.stack([one((address[at], x[at])) for at in range(address.size)])
        else:
            out = lax.map(one, (address, x))
        out = out.reshape(num_rows, entries, -1)
        if beside.gate is None:
            return jnp.sum(out, axis=1)
        return jnp.sum(out.astype(beside.gate.dtype) * beside.gate[..., None], axis=1).astype(rows.dtype)
