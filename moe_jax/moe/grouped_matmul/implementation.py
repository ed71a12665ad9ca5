"""What an implementation of the grouped matmul provides."""

from typing import NamedTuple, Protocol

from jaxtyping import Array, Float, Int


class Multiply(Protocol):
    """Rows of each group times its matrix, or its transpose. Rows past the last group may come out as anything."""

    def __call__(
        self, rows: Float[Array, "M _"], weights: Float[Array, "G K N"], sizes: Int[Array, "G"], transpose: bool
    ) -> Float[Array, "M _"]:
        """`rows` times `weights[g]`; with `transpose`, rows [M, N] times their transposes."""


class Outer(Protocol):
    """The gradient of the matrices."""

    def __call__(
        self, rows: Float[Array, "M K"], grads: Float[Array, "M N"], sizes: Int[Array, "G"]
    ) -> Float[Array, "G K N"]:
        """For each group, the transpose of its rows times those of `grads`; zeros for an empty group."""


class Implementation(NamedTuple):
    """One way to multiply. Sums are made in float32 at least."""

    multiply: Multiply
    outer: Outer
    platforms: tuple[str, ...] = ()  # `jax.Device.platform` that it is for; (): all
    package: str = ""  # that has to be installed; "": JAX alone
    dtypes: tuple[str, ...] = ()  # that it multiplies; (): all
