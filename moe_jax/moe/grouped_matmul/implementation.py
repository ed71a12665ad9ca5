"""What an implementation of the grouped matmul provides."""

import re
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
    platform: str = ""  # `jax.Device.platform` that it is for; "": any
    kinds: str = ""  # of `jax.Device.device_kind`, as a regular expression; "": all of the platform
    package: str = ""  # that has to be installed; "": JAX alone
    dtypes: tuple[str, ...] = ()  # that it multiplies; (): all

    @property
    def where(self) -> str:
        """The devices that it is for, in words."""
        return f"{self.platform} ({self.kinds})" if self.kinds else self.platform

    def runs_on(self, platform: str, kind: str) -> bool:
        """Whether it is for a device of this platform and kind."""
        return self.platform in ("", platform) and bool(re.search(self.kinds, kind))

    def fits(self, platform: str, kind: str, dtype: str) -> bool:
        """Whether it is for such a device and multiplies numbers of the type."""
        return self.runs_on(platform, kind) and dtype in (self.dtypes or (dtype,))
