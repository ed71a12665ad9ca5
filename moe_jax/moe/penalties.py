"""Losses of a router's own weights, by their name in `moe.penalty`; `moe.penalty_loss` weighs them."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float


def simbal(weight: Float[Array, "D A"]) -> Float[Array, ""]:
    """|| R^T R - I ||_1, the sum over entries, which is 0 for orthonormal columns: then similar tokens are routed alike
    (SimBal, Omi et al. 2025, arXiv 2506.14038).
    """
    products = jnp.matmul(weight.T, weight, precision="highest")
    return jnp.sum(jnp.abs(products - jnp.eye(weight.shape[1], dtype=weight.dtype)))


PENALTIES: dict[str, Callable[[Float[Array, "D A"]], Float[Array, ""]]] = {"simbal": simbal}
