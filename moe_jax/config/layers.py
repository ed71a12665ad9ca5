"""Which layers are of which kind: the model's segments, as data."""

from typing import NamedTuple

from moe_jax.config.schema import RunConfig

DENSE, MOE = "dense", "moe"


class SegmentSpec(NamedTuple):
    """`repeats` copies of a `pattern` of layer kinds, one after another: ("dense", "moe") x 6 is twelve layers."""

    pattern: tuple[str, ...]
    repeats: int


def segments(run: RunConfig) -> tuple[SegmentSpec, ...]:
    """The model from input to output; compile time grows with the number of segments, not of layers."""
    layers, moe = run.model.num_layers, run.moe
    if moe.num_experts == 0:
        return (SegmentSpec((DENSE,), layers),)
    periods, rest = divmod(layers - moe.first_dense, moe.every)
    parts = (
        SegmentSpec((DENSE,), moe.first_dense),
        SegmentSpec((DENSE,) * (moe.every - 1) + (MOE,), periods),
        SegmentSpec((DENSE,), rest),
    )
    return tuple(part for part in parts if part.repeats)


def num_moe_layers(run: RunConfig) -> int:
    """M, the MoE layers of the whole model."""
    return sum(part.pattern.count(MOE) * part.repeats for part in segments(run))
