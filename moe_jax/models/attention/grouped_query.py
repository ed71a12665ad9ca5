"""Attention with grouped queries (Ainslie et al. 2023) and rotary positions; with as many key-value heads as query
heads, multi-head attention.
"""

from collections.abc import Iterator
from typing import Any

from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from moe_jax.config.rules import ConfigError, divides
from moe_jax.config.schema import AttentionConfig, ModelConfig, RunConfig
from moe_jax.models.attention.cache import KeyValueCache
from moe_jax.models.attention.kernels import KERNELS
from moe_jax.models.attention.mask import Mask
from moe_jax.models.attention.rotary import rotate, turned
from moe_jax.models.norm import ProjectionNorm, RMSNorm
from moe_jax.moe.lora import project
from moe_jax.parallel.checks import Size
from moe_jax.parallel.collectives import once, varying
from moe_jax.parallel.mesh import TENSOR
from moe_jax.parallel.sharding import gather, param

LATENT_ONLY = ("query_rank", "kv_rank", "rope_dim", "value_dim")  # fields of AttentionConfig


class GroupedQueryAttention(nnx.Module):
    """Heads are split over the mesh axis `tensor`; the output is this device's part of a sum over it."""

    ADAPTABLE = ("q", "k", "v", "out")
    CACHE_CUT = (TENSOR,)  # mesh axes over which the heads of a cache are cut

    def __init__(
        self, model: ModelConfig, attention: AttentionConfig, init: nnx.Initializer, rngs: nnx.Rngs, dtype: Any
    ):
        self.head_dim, self.attention = model.head_dim, attention
        queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
        self.q = param(rngs, (model.d_model, queries), ("embed", "heads"), init, dtype)
        self.k = param(rngs, (model.d_model, keys), ("embed", "heads"), init, dtype)
        self.v = param(rngs, (model.d_model, keys), ("embed", "heads"), init, dtype)
        self.out = param(rngs, (queries, model.d_model), ("heads_in", None), init, dtype)
        zeros = lambda size, axis: param(rngs, (size,), (axis,), nnx.initializers.zeros, dtype)
        self.q_bias, self.k_bias, self.v_bias = (
            (zeros(size, "heads") if attention.bias else None) for size in (queries, keys, keys)
        )
        self.out_bias = zeros(model.d_model, None) if attention.out_bias else None
        self.sinks = zeros(model.num_heads, "heads") if attention.sinks else None
        self.q_norm, self.k_norm = (_norm(size, model, attention, rngs, dtype) for size in (queries, keys))

    def __call__(
        self,
        x: Float[Array, "B L D"],
        mask: Mask,
        memory: Float[Array, "B P D"] | None = None,
        cache: KeyValueCache | None = None,
    ) -> tuple[Float[Array, "B L D"], KeyValueCache | None]:
        """Attends to `memory`, or to the sequence itself, and returns the cache with its keys and values.

        Queries and keys of the sequence itself are turned by their positions. With a `cache`, x continues what is in
        it, from `mask.start` on, and the keys are those of the cache; `mask.count` may say how much of x is there.
        """
        attention = self.attention
        x = varying(x, [TENSOR])
        source = x if memory is None else varying(memory, [TENSOR])
        q = self._heads(x, "q", self.q_bias, self.q_norm)
        k = self._heads(source, "k", self.k_bias, self.k_norm)
        v = self._heads(source, "v", self.v_bias, None)
        if memory is None:
            positions = mask.query_positions(x.shape[1])
            q, k = rotate(q, positions, attention), rotate(k, positions, attention)
        if cache is not None:
            cache = cache.write(mask, k, v)
            (k, v), mask = cache.seen_by(mask, x.shape[1])
        sinks = None if self.sinks is None else gather(self.sinks, q.dtype)
        out = KERNELS[attention.kernel].attend(q, k, v, mask, attention.chunk, attention.scale, sinks)
        out = project(self, "out", out.reshape(*x.shape[:2], -1))
        return out if self.out_bias is None else out + once(gather(self.out_bias, x.dtype), TENSOR), cache

    def _heads(
        self, x: Float[Array, "B L D"], weight: str, bias: nnx.Param | None, norm: nnx.Module | None
    ) -> Float[Array, "B L H N"]:
        """This device's heads of a projection, normalised where the layer says so."""
        y = project(self, weight, x)
        y = y if bias is None else y + gather(bias, x.dtype)
        y = norm(y) if isinstance(norm, ProjectionNorm) else y
        heads = y.reshape(*y.shape[:2], -1, self.head_dim)
        return norm(heads) if isinstance(norm, RMSNorm) else heads

    @classmethod
    def cache(
        cls, model: ModelConfig, attention: AttentionConfig, batch: int, length: int, dtype: DTypeLike
    ) -> KeyValueCache:
        """An empty cache of the whole layer."""
        heads, size = model.num_kv_heads, model.head_dim
        return KeyValueCache.empty(batch, length, (heads, heads), (size, size), dtype)

    @classmethod
    def check(cls, run: RunConfig) -> None:
        """Raises ConfigError where heads do not come out even, and on fields of latent attention."""
        model, attention = run.model, run.attention
        divides("model.num_kv_heads", model.num_kv_heads, "model.num_heads", model.num_heads)
        size = turned(model.head_dim, attention)
        if attention.rope_fraction == 1 and size % 2:
            raise ConfigError(f"model.head_dim={size} is odd: rotary positions turn pairs, use an even size")
        if size % 2 or not size:
            raise ConfigError(
                f"model.head_dim={model.head_dim} with attention.rope_fraction={attention.rope_fraction} turns {size} "
                "dimensions: rotary positions turn pairs, make it an even number"
            )
        for name in LATENT_ONLY:
            if getattr(attention, name):
                raise ConfigError(
                    f"attention.{name}={getattr(attention, name)} has no effect with attention.kind='grouped_query': "
                    "leave it at 0, or use attention.kind='latent'"
                )

    @classmethod
    def sizes(cls, run: RunConfig) -> Iterator[Size]:
        """The dimensions that the mesh cuts; a head is never cut."""
        model = run.model
        yield Size("embed", "model.d_model", model.d_model)
        yield Size("heads", "model.num_kv_heads", model.num_kv_heads)
        yield Size("heads_in", "model.num_heads * model.head_dim", model.num_heads * model.head_dim)

    @classmethod
    def matrices(cls, model: ModelConfig, attention: AttentionConfig) -> dict[str, tuple[int, int]]:
        """The shapes of the matrices that every token is multiplied with, by name."""
        queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
        inner = {"q": queries, "k": keys, "v": keys}
        return {name: (model.d_model, size) for name, size in inner.items()} | {"out": (queries, model.d_model)}

    @classmethod
    def vector_params(cls, model: ModelConfig, attention: AttentionConfig) -> int:
        """Biases, scales of norms and sinks."""
        queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
        norms = {"": 0, "head": 2 * model.head_dim, "projection": queries + keys}[attention.qk_norm]
        biases = attention.bias * (queries + 2 * keys) + attention.out_bias * model.d_model
        return norms + biases + attention.sinks * model.num_heads

    @classmethod
    def score_multiply_adds(cls, model: ModelConfig, attention: AttentionConfig, keys: int) -> int:
        """Multiply-adds of one query's scores and of its sum of values, over so many keys."""
        return 2 * model.num_heads * model.head_dim * keys


def _norm(
    size: int, model: ModelConfig, attention: AttentionConfig, rngs: nnx.Rngs, dtype: Any
) -> RMSNorm | ProjectionNorm | None:
    if not attention.qk_norm:
        return None
    if attention.qk_norm == "head":
        return RMSNorm(model.head_dim, model.norm_eps, rngs, dtype)
    return ProjectionNorm(size, model.norm_eps, rngs, dtype)
