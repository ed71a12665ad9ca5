"""What each layer is made of, and how layers repeat: the model as data, in segments that are scanned."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from moe_jax.config.schema import AttentionConfig, MoEConfig, RunConfig

BY_LAYER = ("num_experts", "top_k", "capacity_factor", "router")  # fields of MoEConfig that FIELD_by_layer varies


class DenseSpec(NamedTuple):
    """A dense feed-forward network."""

    d_ff: int
    activation: str


class LayerSpec(NamedTuple):
    """The parts of one layer, as the residual stream meets them; None where it has no such part."""

    attention: AttentionConfig | None
    feed_forward: DenseSpec | MoEConfig
    cross_attention: AttentionConfig | None = None  # to another sequence, between the other two

    @property
    def moe(self) -> MoEConfig | None:
        """The settings of its experts; None where the feed-forward is dense."""
        return self.feed_forward if isinstance(self.feed_forward, MoEConfig) else None


class SegmentSpec(NamedTuple):
    """`repeats` copies of a `pattern` of layers, one after another: (dense, MoE) x 6 is twelve layers.

    The MoE layers of one segment have equal settings, so that their statistics stack.
    """

    pattern: tuple[LayerSpec, ...]
    repeats: int

    @property
    def moe(self) -> MoEConfig | None:
        """The settings of its MoE layers; None: it has none."""
        return next((layer.moe for layer in self.pattern if layer.moe is not None), None)

    @property
    def num_layers(self) -> int:
        """Layers in all copies."""
        return len(self.pattern) * self.repeats

    @property
    def num_moe_layers(self) -> int:
        """MoE layers in all copies."""
        return sum(layer.moe is not None for layer in self.pattern) * self.repeats


class MoESegment(NamedTuple):
    """A segment that has MoE layers."""

    moe: MoEConfig
    num_moe_layers: int


def segments(run: RunConfig) -> tuple[SegmentSpec, ...]:
    """The model from input to output; compile time grows with the number of segments, not of layers."""
    parts = _by_feed_forward(run)
    if not run.attention.windows:
        return parts
    windows = itertools.cycle(run.attention.windows)
    flat = (layer for part in parts for layer in part.pattern * part.repeats)
    own = [_with_window(layer, window) for layer, window in zip(flat, windows, strict=False)]
    return tuple(_repeating(own))


def _with_window(layer: LayerSpec, window: int) -> LayerSpec:
    assert layer.attention is not None
    return layer._replace(attention=dataclasses.replace(layer.attention, window=window, windows=()))


def _repeating(layers: list[LayerSpec]) -> Iterator[SegmentSpec]:
    """Segments of the shortest patterns that cover the most layers, whose MoE layers have equal settings."""
    while layers:
        best = SegmentSpec(tuple(layers[:1]), 1)
        for period in range(1, len(layers) // 2 + 1):
            pattern = layers[:period]
            if len({layer.moe for layer in pattern if layer.moe is not None}) > 1:
                break
            repeats = 1
            while layers[repeats * period : (repeats + 1) * period] == pattern:
                repeats += 1
            if repeats > 1 and repeats * period > best.num_layers:
                best = SegmentSpec(tuple(pattern), repeats)
        yield best
        layers = layers[best.num_layers :]


def _by_feed_forward(run: RunConfig) -> tuple[SegmentSpec, ...]:
    layers, moe = run.model.num_layers, run.moe
    dense = LayerSpec(run.attention, DenseSpec(run.model.d_ff, run.model.activation))
    if moe.num_experts == 0:
        return (SegmentSpec((dense,), layers),)

    def pattern(settings: MoEConfig) -> tuple[LayerSpec, ...]:
        return (dense,) * (moe.every - 1) + (LayerSpec(run.attention, settings),)

    parts = (
        SegmentSpec((dense,), moe.first_dense),
        *(SegmentSpec(pattern(one), len(list(equal))) for one, equal in itertools.groupby(moe_by_layer(run))),
        SegmentSpec((dense,), (layers - moe.first_dense) % moe.every),
    )
    return tuple(part for part in parts if part.repeats)


def moe_segments(run: RunConfig) -> tuple[MoESegment, ...]:
    """Those with MoE layers, one after another: neighbours differ in what they take from the lists by layer."""
    return tuple(MoESegment(part.moe, part.num_moe_layers) for part in segments(run) if part.moe is not None)


def num_moe_layers(run: RunConfig) -> int:
    """M, the MoE layers of the whole model."""
    return (run.model.num_layers - run.moe.first_dense) // run.moe.every if run.moe.num_experts else 0


def moe_by_layer(run: RunConfig) -> tuple[MoEConfig, ...]:
    """The settings of each MoE layer from input to output, without lists by layer."""
    lists = {name: getattr(run.moe, f"{name}_by_layer") for name in BY_LAYER}
    emptied: dict[str, Any] = {f"{name}_by_layer": () for name in BY_LAYER}
    own: Callable[[int], dict[str, Any]] = lambda layer: {name: of[layer] for name, of in lists.items() if of}
    return tuple(dataclasses.replace(run.moe, **emptied, **own(layer)) for layer in range(num_moe_layers(run)))
