"""Which layers are of which kind: the model's segments, as data."""

import dataclasses
import itertools
from typing import NamedTuple

from moe_jax.config.schema import MoEConfig, RunConfig

DENSE, MOE = "dense", "moe"
BY_LAYER = ("num_experts", "top_k", "capacity_factor")  # fields of MoEConfig that FIELD_by_layer varies


class SegmentSpec(NamedTuple):
    """`repeats` copies of a `pattern` of layer kinds, one after another: ("dense", "moe") x 6 is twelve layers."""

    pattern: tuple[str, ...]
    repeats: int
    moe: MoEConfig  # of its MoE layers

    @property
    def num_moe_layers(self) -> int:
        """MoE layers of all copies."""
        return self.pattern.count(MOE) * self.repeats


def segments(run: RunConfig) -> tuple[SegmentSpec, ...]:
    """The model from input to output; compile time grows with the number of segments, not of layers."""
    layers, moe = run.model.num_layers, run.moe
    if moe.num_experts == 0:
        return (SegmentSpec((DENSE,), layers, moe),)
    pattern = (DENSE,) * (moe.every - 1) + (MOE,)
    parts = (
        SegmentSpec((DENSE,), moe.first_dense, moe),
        *(SegmentSpec(pattern, len(list(equal)), one) for one, equal in itertools.groupby(moe_by_layer(run))),
        SegmentSpec((DENSE,), (layers - moe.first_dense) % moe.every, moe),
    )
    return tuple(part for part in parts if part.repeats)


def moe_segments(run: RunConfig) -> tuple[SegmentSpec, ...]:
    """Those with MoE layers, one after another: neighbours differ in what they take from the lists by layer."""
    return tuple(part for part in segments(run) if part.num_moe_layers)


def num_moe_layers(run: RunConfig) -> int:
    """M, the MoE layers of the whole model."""
    return (run.model.num_layers - run.moe.first_dense) // run.moe.every if run.moe.num_experts else 0


def moe_by_layer(run: RunConfig) -> tuple[MoEConfig, ...]:
    """The settings of each MoE layer from input to output, without lists by layer."""
    lists = {name: getattr(run.moe, f"{name}_by_layer") for name in BY_LAYER}
    alike = dataclasses.replace(run.moe, **{f"{name}_by_layer": () for name in BY_LAYER})
    own = lambda layer: {name: values[layer] for name, values in lists.items() if values}
    return tuple(dataclasses.replace(alike, **own(layer)) for layer in range(num_moe_layers(run)))
