"""Gathers whose gradients are gathers too."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@jax.custom_vjp
def permute(x: Float[Array, "R D"], source: Int[Array, "S"], targets: Int[Array, "R K"]) -> Float[Array, "S D"]:
    """Row s is x[source[s]], or zeros where source[s] is past the end.

    `targets` is the inverse: the rows of the result that row r of x went to (past the end: none). With it the gradient
    is a gather, where that of plain indexing is a scatter-add: slow everywhere, and without a fixed order of sums on
    GPU.
    """
    return jnp.take(x, source, axis=0, mode="fill", fill_value=0)


def _permute_forward(x, source, targets):
    return permute(x, source, targets), targets


def _permute_backward(targets, g):
    return jnp.sum(jnp.take(g, targets, axis=0, mode="fill", fill_value=0), axis=1), None, None


permute.defvjp(_permute_forward, _permute_backward)
