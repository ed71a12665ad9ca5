"""The decoder-only transformer."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from moe_jax.config.layers import segments
from moe_jax.config.schema import RunConfig
from moe_jax.models.adapters import add_adapters
from moe_jax.models.attention.mask import Mask
from moe_jax.models.block import Segment
from moe_jax.models.loss import cross_entropy
from moe_jax.models.norm import RMSNorm
from moe_jax.moe.context import Context
from moe_jax.moe.sums import Sums
from moe_jax.parallel.collectives import index_over
from moe_jax.parallel.mesh import TENSOR, TOKEN_AXES
from moe_jax.parallel.sharding import fan_in_init, gather, param


class Decoder(nnx.Module):
    """Embedding, segments of layers, norm, output head. Every method runs inside `shard_map` on a device's own tokens.

    Weights are drawn with variance init_scale / fan_in (Switch Transformer, section 2.4).
    """

    def __init__(self, run: RunConfig, rngs: nnx.Rngs):
        model = run.model
        dtype = jnp.float64 if model.dtype == "float64" else jnp.float32
        init = fan_in_init(model.init_scale)
        self.run = run
        table = nnx.initializers.normal(model.d_model**-0.5)
        self.embedding = param(rngs, (model.vocab_size, model.d_model), ("vocab_in", None), table, dtype)
        first, parts = 0, []
        for spec in segments(run):
            parts.append(Segment(spec, first, run, init, rngs, dtype))
            first += spec.num_layers
        self.segments = nnx.List(parts)
        self.norm = RMSNorm(model.d_model, model.norm_eps, rngs, dtype)
        if not model.tie_embeddings:
            self.head = param(rngs, (model.d_model, model.vocab_size), ("embed", "vocab"), init, dtype)
        if run.lora.rank:
            add_adapters(self, run.lora, rngs)

    def hidden(
        self,
        ids: Int[Array, "B L"],
        documents: Int[Array, "B L"],
        step: Int[Array, ""],
        key: Key[Array, ""] | None,
        train: bool,
    ) -> tuple[Float[Array, "B L D"], tuple[Sums, ...]]:
        """Normalised output of the last layer, and the routing sums of this device.

        The sums are [M, ...] in the order of layers, for each segment with MoE layers: these may differ from the next
        one's in E and K.

        Args:
            ids: vocabulary indices.
            documents: the number of each token's document; 0 marks padding.
            step: of training, for schedules inside the model.
            key: for noise in training; None: no noise.
            train: whether experts have the capacity of training, and are chosen as in training.
        """
        run, dtype = self.run, jnp.dtype(self.run.model.dtype)
        context = Context(
            ids=ids,
            valid=documents > 0,
            keys=None if key is None else _group_keys(key, ids.size // run.moe.group_size),
            step=step,
        )
        apart = documents if run.data.mask_documents else None
        mask = Mask(query_documents=apart, key_documents=apart)
        # Looked up in float32 so that the gradients of a frequent token are added up in it.
        table = gather(self.embedding, dtype).astype(jnp.promote_types(dtype, jnp.float32))
        x = jnp.take(table, ids, axis=0)
        x = (x if run.model.embedding_scale == 1 else x * run.model.embedding_scale).astype(dtype)
        sums = []
        for segment in self.segments:
            x, segment_sums = segment(x, mask, context, train)
            sums += [segment_sums] if segment_sums is not None else []
        return self.norm(x), tuple(sums)

    def negative_log_likelihood(
        self,
        ids: Int[Array, "B L"],
        targets: Int[Array, "B L"],
        documents: Int[Array, "B L"],
        scored: Bool[Array, "B L"],
        step: Int[Array, ""],
        key: Key[Array, ""] | None,
        train: bool,
    ) -> tuple[Float[Array, "B"], tuple[Sums, ...]]:
        """Nats of each sequence's targets, summed over `scored` positions, and the routing sums of `hidden`."""
        x, sums = self.hidden(ids, documents, step, key, train)
        x = self._before_head(x)
        return cross_entropy(x, self._head(x.dtype), targets, scored, self.run.model.loss_chunk), sums

    def logits(
        self, ids: Int[Array, "B L"], documents: Int[Array, "B L"]
    ) -> tuple[Float[Array, "B L v"], tuple[Sums, ...]]:
        """This device's part of the logits, in float32 or better, and the routing sums of `hidden`. For evaluation:
        without noise, at its capacity factor.
        """
        x, sums = self.hidden(ids, documents, jnp.int32(0), None, train=False)
        x = self._before_head(x)
        return jnp.matmul(x, self._head(x.dtype), preferred_element_type=jnp.promote_types(x.dtype, jnp.float32)), sums

    def _before_head(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        return x if self.run.model.logits_scale == 1 else x * self.run.model.logits_scale

    def _head(self, dtype: Any) -> Float[Array, "D v"]:
        """This device's part of the output head, V cut over `tensor`."""
        if not self.run.model.tie_embeddings:
            return gather(self.head, dtype)
        table = gather(self.embedding, dtype)
        own = table.shape[0] // lax.axis_size(TENSOR)
        return lax.dynamic_slice_in_dim(table, index_over([TENSOR]) * own, own).T


def _group_keys(key: Key[Array, ""], groups: int) -> Key[Array, "G"]:
    """A key for each of this device's groups, folded with the group's index in the whole batch."""
    first = index_over(TOKEN_AXES) * groups
    return jax.vmap(lambda group: jax.random.fold_in(key, group))(first + jnp.arange(groups))
