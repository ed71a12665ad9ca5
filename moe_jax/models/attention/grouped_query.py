"""Attention with grouped queries (Ainslie et al. 2023) and rotary positions; with as many key-value heads as query
heads, multi-head attention.
"""

from collections.abc import Iterator
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from moe_jax.config.rules import ConfigError, divides
from moe_jax.config.schema import AttentionConfig, ModelConfig, RunConfig
from moe_jax.models.attention.cache import KeyValueCache
from moe_jax.models.attention.kernels import KERNELS
from moe_jax.models.attention.mask import Mask
from moe_jax.models.attention.rotary import rotate
from moe_jax.parallel.checks import Size
from moe_jax.parallel.collectives import varying
from moe_jax.parallel.mesh import TENSOR
from moe_jax.parallel.sharding import gather, param


class GroupedQueryAttention(nnx.Module):
    """Heads are split over the mesh axis `tensor`; the output is this device's part of a sum over it."""

    def __init__(
        self, model: ModelConfig, attention: AttentionConfig, init: nnx.Initializer, rngs: nnx.Rngs, dtype: Any
    ):
        self.head_dim, self.attention = model.head_dim, attention
        queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
        self.q = param(rngs, (model.d_model, queries), ("embed", "heads"), init, dtype)
        self.k = param(rngs, (model.d_model, keys), ("embed", "heads"), init, dtype)
        self.v = param(rngs, (model.d_model, keys), ("embed", "heads"), init, dtype)
        self.out = param(rngs, (queries, model.d_model), ("heads_in", None), init, dtype)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        mask: Mask,
        memory: Float[Array, "B P D"] | None = None,
        cache: KeyValueCache | None = None,
    ) -> tuple[Float[Array, "B L D"], KeyValueCache | None]:
        """Attends to `memory`, or to the sequence itself, and returns the cache with its keys and values.

        Queries and keys of the sequence itself are turned by their positions. With a `cache`, x continues what is in
        it, from `mask.start` on, and the keys are those of the cache.
        """
        x = varying(x, [TENSOR])
        source = x if memory is None else varying(memory, [TENSOR])
        heads = lambda y, weight: (y @ gather(weight, y.dtype)).reshape(*y.shape[:2], -1, self.head_dim)
        q, k, v = heads(x, self.q), heads(source, self.k), heads(source, self.v)
        if memory is None:
            positions = mask.query_positions(x.shape[1])
            q, k = rotate(q, positions, self.attention.rope_theta), rotate(k, positions, self.attention.rope_theta)
        if cache is not None:
            cache = cache.write(mask.start, k, v)
            k, v = cache
        attend = KERNELS[self.attention.kernel].attend
        return attend(q, k, v, mask, self.attention.chunk).reshape(*x.shape[:2], -1) @ gather(self.out, x.dtype), cache

    @classmethod
    def check(cls, run: RunConfig) -> None:
        """Raises ConfigError where heads do not come out even."""
        model = run.model
        divides("model.num_kv_heads", model.num_kv_heads, "model.num_heads", model.num_heads)
        if model.head_dim % 2:
            raise ConfigError(f"model.head_dim={model.head_dim} is odd: rotary positions turn pairs, use an even size")

    @classmethod
    def sizes(cls, run: RunConfig) -> Iterator[Size]:
        """The dimensions that the mesh cuts; a head is never cut."""
        model = run.model
        yield Size("embed", "model.d_model", model.d_model)
        yield Size("heads", "model.num_kv_heads", model.num_kv_heads)
        yield Size("heads_in", "model.num_heads * model.head_dim", model.num_heads * model.head_dim)

    @classmethod
    def matmul_params(cls, model: ModelConfig) -> int:
        """Weights that every token is multiplied with."""
        return 2 * model.d_model * model.head_dim * (model.num_heads + model.num_kv_heads)

    @classmethod
    def score_multiply_adds(cls, model: ModelConfig, keys: int) -> int:
        """Multiply-adds of one query's scores and of its sum of values, over so many keys."""
        return 2 * model.num_heads * model.head_dim * keys
