"""Losses of a router's own weights, by their name in `moe.penalty`; `moe.penalty_loss` weighs them."""

from collections.abc import Callable

from jaxtyping import Array, Float

PENALTIES: dict[str, Callable[[Float[Array, "D A"]], Float[Array, ""]]] = {}
