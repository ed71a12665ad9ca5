"""One transformer layer, and a segment: a pattern of layers that is scanned."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from moe_jax.config.layers import DenseSpec, LayerSpec, SegmentSpec
from moe_jax.config.schema import RunConfig
from moe_jax.models.attention import ATTENTIONS
from moe_jax.models.attention.cache import KeyValueCache
from moe_jax.models.attention.mask import Mask
from moe_jax.models.norm import RMSNorm
from moe_jax.moe.context import Context
from moe_jax.moe.delivery import EXCHANGED
from moe_jax.moe.feed_forward import FeedForward
from moe_jax.moe.layer import MoELayer
from moe_jax.moe.sums import Sums
from moe_jax.parallel.collectives import sum_over, varying
from moe_jax.parallel.mesh import TENSOR

REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "save_exchange": jax.checkpoint_policies.save_only_these_names(*EXCHANGED),
}


class Block(nnx.Module):
    """The parts of a `LayerSpec`, each applied to the normalised stream and added to it, or with
    `model.norm_place="post"` applied to the stream and added normalised.
    """

    def __init__(self, spec: LayerSpec, run: RunConfig, init: nnx.Initializer, rngs: nnx.Rngs, dtype: Any):
        model = run.model
        norm = lambda: RMSNorm(model.d_model, model.norm_eps, rngs, dtype)
        attention = lambda settings: ATTENTIONS[settings.kind](model, settings, init, rngs, dtype)
        if spec.attention is not None:
            self.norm_attention, self.attention = norm(), attention(spec.attention)
        if spec.cross_attention is not None:
            self.norm_cross_attention, self.cross_attention = norm(), attention(spec.cross_attention)
        self.norm_feed_forward = norm()
        if isinstance(spec.feed_forward, DenseSpec):
            self.feed_forward = FeedForward(model.d_model, *spec.feed_forward, init, rngs, dtype)
        else:
            self.moe = MoELayer(model.d_model, spec.feed_forward, init, rngs, dtype)
        self.spec, self.post_norm, self.residual_scale = spec, model.norm_place == "post", model.residual_scale

    def __call__(
        self,
        x: Float[Array, "B L D"],
        mask: Mask,
        context: Context,
        train: bool,
        memory: Float[Array, "B P D"] | None = None,
        cache: KeyValueCache | None = None,
    ) -> tuple[Float[Array, "B L D"], Sums | None, KeyValueCache | None]:
        """The stream after the layer, the sums of its experts, and its cache with x; `context.keys` are those of the
        layer.

        The layer's own settings say how far `mask` lets it look back. `memory` is what cross-attention attends to, all
        of it. With a `cache` x continues what is in it.
        """
        if self.spec.attention is not None:
            own = dataclasses.replace(mask, window=self.spec.attention.window)
            y, cache = self.attention(self._read(x, self.norm_attention), own, cache=cache)
            x = self._add(x, sum_over(y, [TENSOR]), self.norm_attention)
        if self.spec.cross_attention is not None:
            y, _ = self.cross_attention(self._read(x, self.norm_cross_attention), Mask(causal=False), memory)
            x = self._add(x, sum_over(y, [TENSOR]), self.norm_cross_attention)
        read = self._read(x, self.norm_feed_forward)
        if self.spec.moe is not None:
            y, sums = self.moe(read, context, train)
            return self._add(x, y, self.norm_feed_forward), sums, cache
        y = sum_over(self.feed_forward(varying(read, [TENSOR])), [TENSOR])
        return self._add(x, y, self.norm_feed_forward), None, cache

    def _read(self, x: Float[Array, "B L D"], norm: RMSNorm) -> Float[Array, "B L D"]:
        return x if self.post_norm else norm(x)

    def _add(self, x: Float[Array, "B L D"], y: Float[Array, "B L D"], norm: RMSNorm) -> Float[Array, "B L D"]:
        y = norm(y) if self.post_norm else y
        return x + (y if self.residual_scale == 1 else y * self.residual_scale)


class Segment(nnx.Module):
    """`repeats` copies of a pattern of blocks: one scan, over the stacked weights of equal places in the pattern."""

    def __init__(
        self, spec: SegmentSpec, first_layer: int, run: RunConfig, init: nnx.Initializer, rngs: nnx.Rngs, dtype: Any
    ):
        self.repeats, self.first_layer, self.remat = spec.repeats, first_layer, run.model.remat
        create = lambda rngs: nnx.List([Block(layer, run, init, rngs, dtype) for layer in spec.pattern])
        self.blocks = nnx.vmap(create)(rngs.split(spec.repeats))

    def __call__(
        self, x: Float[Array, "B L D"], mask: Mask, context: Context, train: bool
    ) -> tuple[Float[Array, "B L D"], Sums | None]:
        """The stream after the last layer, and the sums of its MoE layers, [M, ...], in the order of layers; None: it
        has none.
        """
        graphdefs, weights = zip(*[nnx.split(block) for block in self.blocks], strict=True)
        period = len(graphdefs)

        def repeat(x: Array, scanned: tuple[tuple[PyTree, ...], Int[Array, ""]]):
            weights, index = scanned
            sums = []
            for place, (graphdef, weight) in enumerate(zip(graphdefs, weights, strict=True)):
                layer = self.first_layer + index * period + place
                x, layer_sums = _apply(graphdef, self.remat, train)(weight, x, mask, context, layer)
                sums += [layer_sums] if layer_sums is not None else []
            return x, sums

        x, sums = lax.scan(repeat, x, (weights, jnp.arange(self.repeats)))
        return x, in_layer_order(sums) if sums else None


def in_layer_order(by_place: Sequence[PyTree]) -> PyTree:
    """From one [repeats, ...] for each place of the pattern to [repeats * places, ...]."""
    merge = lambda *places: jnp.stack(places, axis=1).reshape(len(places) * places[0].shape[0], *places[0].shape[1:])
    return jax.tree.map(merge, *by_place)


def by_place(in_order: Array, places: int) -> list[Array]:
    """The inverse of `in_layer_order`, of one array."""
    return list(jnp.moveaxis(in_order.reshape(-1, places, *in_order.shape[1:]), 1, 0))


def _apply(graphdef: nnx.GraphDef, remat: str, train: bool) -> Callable:
    def apply(weight: PyTree, x: Array, mask: Mask, context: Context, layer: Int[Array, ""]):
        if context.keys is not None:
            context = context._replace(keys=jax.vmap(lambda key: jax.random.fold_in(key, layer))(context.keys))
        return nnx.merge(graphdef, weight, copy=True)(x, mask, context, train)[:2]

    return apply if remat == "none" else jax.checkpoint(apply, policy=REMAT[remat], prevent_cse=False)
