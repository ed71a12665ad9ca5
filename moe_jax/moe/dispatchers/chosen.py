"""The dispatcher for few tokens, as in decoding: no weights are read but those of the experts that were chosen."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from moe_jax.moe.delivery import Beside
from moe_jax.moe.dispatchers.sorted import Dropless
from moe_jax.moe.feed_forward import Experts


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
        out = lax.map(one, (beside.address.reshape(-1), x)).reshape(num_rows, entries, -1)
        if beside.gate is None:
            return jnp.sum(out, axis=1)
        return jnp.sum(out.astype(beside.gate.dtype) * beside.gate[..., None], axis=1).astype(rows.dtype)
