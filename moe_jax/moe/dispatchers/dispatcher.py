"""What every dispatcher does, and what may be asked of it before anything runs."""

import abc
import dataclasses
from collections.abc import Iterator
from fractions import Fraction
from typing import ClassVar, Literal

from jaxtyping import Array, Bool, Float

from moe_jax.config.capacity import capacity_of, effective_factor, factor_of, nominal_capacity, random_drop_fraction
from moe_jax.config.schema import MoEConfig
from moe_jax.moe.context import Context
from moe_jax.moe.feed_forward import Experts
from moe_jax.moe.router import columns
from moe_jax.moe.routers import ROUTERS
from moe_jax.moe.routing import Routing
from moe_jax.moe.wires import Wire


@dataclasses.dataclass(frozen=True)
class Dispatcher(abc.ABC):
    """Carries the tokens of a layer to its experts and back, as a routing says.

    What it costs is asked of it in closed form, for one group and one direction, by the description of a run, the
    counts, the collective contract and the derivations of sweeps. `train` picks the capacity factor.
    """

    moe: MoEConfig

    trains: ClassVar[bool] = True  # False: it is for inference alone, and no config names it
    splits: ClassVar[Literal["tokens", "slots"]] = "tokens"  # where the devices along `tensor` begin to compute apart

    @abc.abstractmethod
    def __call__(
        self, x: Float[Array, "G T D"], routing: Routing, experts: Experts, context: Context
    ) -> tuple[Float[Array, "G T D"], Bool[Array, "G T K"]]:
        """The weighted sum of each token's experts, and which choices were carried (kept). Inside `shard_map`.

        Where it splits tokens, x varies over the mesh axis `tensor`, and the sum is this device's part of one over it.
        A token without a carried choice gets zeros.
        """

    @abc.abstractmethod
    def wires(self, devices: int, groups: int, remat: str) -> Iterator[Wire]:
        """What a training step exchanges for a micro-batch of one layer over an axis `expert` of so many devices, each
        of which has so many groups; `remat` is `model.remat`.
        """

    def summed_rows(self, train: bool = True) -> int:
        """Rows of D numbers that are summed over `tensor`, forward and, for their gradients, backward."""
        return self.moe.group_size if self.splits == "tokens" else self.rows(train)

    def capacity(self, train: bool = True) -> int:
        """C, the slots that an expert has."""
        return capacity_of(self.moe, train)

    def factor(self, train: bool = True) -> float:
        """The capacity factor before rounding."""
        return factor_of(self.moe, train)

    def nominal_capacity(self, train: bool = True) -> Fraction:
        """C before rounding."""
        return nominal_capacity(self.factor(train), self.moe.top_k, self.moe.group_size, self.moe.num_experts)

    def rows(self, train: bool = True) -> int:
        """Rows of D numbers that travel to the experts: S = E * C."""
        return self.moe.num_experts * self.capacity(train)

    def effective_factor(self, train: bool = True) -> float:
        """The capacity factor after rounding."""
        return effective_factor(self.capacity(train), self.moe.top_k, self.moe.group_size, self.moe.num_experts)

    def random_drop_fraction(self, train: bool = True) -> float:
        """The fraction of choices that would be dropped if experts were drawn at random; 0 where nothing can be."""
        if ROUTERS[self.moe.router].fills_slots:
            return 0.0
        return random_drop_fraction(self.capacity(train), self.moe.top_k, self.moe.group_size, columns(self.moe))

    def experts_per_token(self, train: bool = True) -> Fraction:
        """K, or on average E * C / T where the router fills every slot."""
        if not ROUTERS[self.moe.router].fills_slots:
            return Fraction(self.moe.top_k)
        return Fraction(self.rows(train), self.moe.group_size)
