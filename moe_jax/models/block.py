"""One transformer layer, and a segment: a pattern of layers that is scanned."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from moe_jax.config.layers import MOE, SegmentSpec
from moe_jax.config.schema import RunConfig
from moe_jax.models.attention import Attention
from moe_jax.moe.feed_forward import FeedForward
from moe_jax.moe.layer import EXCHANGED, MoELayer
from moe_jax.moe.router import TokenInfo
from moe_jax.moe.stats import RoutingSums
from moe_jax.parallel.collectives import sum_over, varying
from moe_jax.parallel.mesh import TENSOR
from moe_jax.parallel.sharding import param

REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "save_exchange": jax.checkpoint_policies.save_only_these_names(*EXCHANGED),
}


class Context(NamedTuple):
    """What every layer may look at besides the residual stream."""

    tokens: Int[Array, "B L"]  # their ids
    valid: Bool[Array, "B L"]  # False: padding
    documents: Int[Array, "B L"] | None  # attention stays within equal numbers; None: it may cross
    keys: Key[Array, "G"] | None  # noise of this device's groups; None: no noise (evaluation)
    step: Int[Array, ""]  # of training


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) * scale, in float32 (Zhang and Sennrich 2019)."""

    def __init__(self, model_size: int, eps: float, rngs: nnx.Rngs, dtype):
        self.eps = eps
        self.scale = param(rngs, (model_size,), (None,), nnx.initializers.ones, dtype)

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Normalises the last dimension."""
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        y = y * lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        return (y * self.scale[...]).astype(x.dtype)


class Block(nnx.Module):
    """Attention, then a dense or an MoE feed-forward, each on the normalised stream and added to it."""

    def __init__(self, kind: str, run: RunConfig, init: nnx.Initializer, rngs: nnx.Rngs, dtype):
        model = run.model
        self.norm_attention = RMSNorm(model.d_model, model.norm_eps, rngs, dtype)
        self.attention = Attention(model, init, rngs, dtype)
        self.norm_feed_forward = RMSNorm(model.d_model, model.norm_eps, rngs, dtype)
        self.is_moe = kind == MOE
        if self.is_moe:
            self.moe = MoELayer(model.d_model, run.moe, init, rngs, dtype)
        else:
            self.feed_forward = FeedForward(model.d_model, model.d_ff, model.activation, init, rngs, dtype)

    def __call__(
        self, x: Float[Array, "B L D"], context: Context, train: bool
    ) -> tuple[Float[Array, "B L D"], RoutingSums | None]:
        """`context.keys`: those of the layer."""
        x = x + sum_over(self.attention(self.norm_attention(x), context.documents), [TENSOR])
        normed = self.norm_feed_forward(x)
        if self.is_moe:
            info = TokenInfo(context.tokens, context.valid, context.keys, context.step)
            y, sums = self.moe(normed, info, train)
            return x + y, sums
        return x + sum_over(self.feed_forward(varying(normed, [TENSOR])), [TENSOR]), None


class Segment(nnx.Module):
    """`repeats` copies of a pattern of blocks: one scan, over the stacked weights of equal places in the pattern."""

    def __init__(
        self, spec: SegmentSpec, first_layer: int, run: RunConfig, init: nnx.Initializer, rngs: nnx.Rngs, dtype
    ):
        self.spec, self.first_layer, self.remat = spec, first_layer, run.model.remat
        run = dataclasses.replace(run, moe=spec.moe)
        create = lambda rngs: nnx.List([Block(kind, run, init, rngs, dtype) for kind in spec.pattern])
        self.blocks = nnx.vmap(create)(rngs.split(spec.repeats))

    def __call__(
        self, x: Float[Array, "B L D"], context: Context, train: bool
    ) -> tuple[Float[Array, "B L D"], RoutingSums | None]:
        """Statistics of its MoE layers, [M, ...], in the order of layers; None: it has none."""
        graphdefs, weights = zip(*[nnx.split(block) for block in self.blocks], strict=True)
        period = len(graphdefs)

        def repeat(x: Array, scanned: tuple[tuple[PyTree, ...], Int[Array, ""]]):
            weights, index = scanned
            sums = []
            for place, (graphdef, weight) in enumerate(zip(graphdefs, weights, strict=True)):
                layer = self.first_layer + index * period + place
                x, layer_sums = _apply(graphdef, self.remat, train)(weight, x, context, layer)
                sums += [layer_sums] if layer_sums is not None else []
            return x, sums

        x, sums = lax.scan(repeat, x, (weights, jnp.arange(self.spec.repeats)))
        return x, in_layer_order(sums) if sums else None


def in_layer_order(by_place: list[PyTree]) -> PyTree:
    """From one [repeats, ...] for each place of the pattern to [repeats * places, ...]."""
    merge = lambda *places: jnp.stack(places, axis=1).reshape(len(places) * places[0].shape[0], *places[0].shape[1:])
    return jax.tree.map(merge, *by_place)


def by_place(in_order: Array, places: int) -> list[Array]:
    """The inverse of `in_layer_order`, of one array."""
    return list(jnp.moveaxis(in_order.reshape(-1, places, *in_order.shape[1:]), 1, 0))


def _apply(graphdef: nnx.GraphDef, remat: str, train: bool):
    def apply(weight: PyTree, x: Array, context: Context, layer: Int[Array, ""]):
        if context.keys is not None:
            context = context._replace(keys=jax.vmap(lambda key: jax.random.fold_in(key, layer))(context.keys))
        return nnx.merge(graphdef, weight, copy=True)(x, context, train)

    return apply if remat == "none" else jax.checkpoint(apply, policy=REMAT[remat], prevent_cse=False)
