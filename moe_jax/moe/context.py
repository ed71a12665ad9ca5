"""What a layer may look at besides the residual stream."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key


class Context(NamedTuple):
    """Facts about the tokens, of shape [B, L] in a layer and [G, T] in a router or dispatcher."""

    ids: Int[Array, "*T"]  # vocabulary indices
    valid: Bool[Array, "*T"]  # False: padding
    keys: Key[Array, "G"] | None  # noise of this device's groups in this layer; None: no noise (evaluation)
    step: Int[Array, ""]  # of training
    train: bool = False  # for what is done differently in training; the layer sets it
    capacity: int | None = None  # C, where the dispatcher has one; the layer sets it
    place: Int[Array, "*T"] | None = None  # of a token in its group or, in decoding, its sequence; None: 0, 1, 2 ...


def plain_context(shape: tuple[int, ...]) -> Context:
    """Valid tokens of id 0 at step 0, without noise."""
    return Context(jnp.zeros(shape, jnp.int32), jnp.ones(shape, bool), None, jnp.int32(0))
