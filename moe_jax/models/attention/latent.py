"""Multi-head latent attention (DeepSeek-V2, section 2.1; DeepSeek-V3, section 2.1.1)."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from moe_jax.config.rules import ConfigError, each, positive
from moe_jax.config.schema import AttentionConfig, ModelConfig, RunConfig
from moe_jax.models.attention.cache import KeyValueCache
from moe_jax.models.attention.kernels import KERNELS
from moe_jax.models.attention.mask import Mask
from moe_jax.models.attention.rotary import rotate
from moe_jax.models.norm import RMSNorm
from moe_jax.moe.lora import adapter_of, project
from moe_jax.parallel.checks import Size
from moe_jax.parallel.collectives import varying
from moe_jax.parallel.mesh import TENSOR
from moe_jax.parallel.sharding import gather, param

NOT_OFFERED = ("qk_norm", "bias", "out_bias", "sinks")  # fields of AttentionConfig


class LatentAttention(nnx.Module):
    """Keys and values of all heads come from one compressed vector a token, of `kv_rank`; queries too, with
    `query_rank`. A head has `model.head_dim` dimensions without positions and `rope_dim` turned ones, whose key all
    heads share.

    Heads are split over the mesh axis `tensor`, the compressed vectors are whole on each of its devices; the output is
    this device's part of a sum over it.
    """

    ADAPTABLE = ("q", "q_down", "q_up", "kv_down", "kv_up", "out")
    CACHE_CUT = ()  # every device along `tensor` has the whole cache

    def __init__(
        self, model: ModelConfig, attention: AttentionConfig, init: nnx.Initializer, rngs: nnx.Rngs, dtype: Any
    ):
        self.head_dim, self.attention = model.head_dim, attention
        heads, size, value = model.num_heads, model.head_dim + attention.rope_dim, _value_dim(model, attention)
        norm = lambda rank: RMSNorm(rank, model.norm_eps, rngs, dtype)
        if attention.query_rank:
            self.q_down = param(rngs, (model.d_model, attention.query_rank), ("embed", None), init, dtype)
            self.q_norm = norm(attention.query_rank)
            self.q_up = param(rngs, (attention.query_rank, heads * size), ("latent", "heads"), init, dtype)
        else:
            self.q = param(rngs, (model.d_model, heads * size), ("embed", "heads"), init, dtype)
        compressed = attention.kv_rank + attention.rope_dim
        self.kv_down = param(rngs, (model.d_model, compressed), ("embed", None), init, dtype)
        self.kv_norm = norm(attention.kv_rank)
        self.kv_up = param(
            rngs, (attention.kv_rank, heads * (model.head_dim + value)), ("latent", "heads"), init, dtype
        )
        self.out = param(rngs, (heads * value, model.d_model), ("heads_in", None), init, dtype)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        mask: Mask,
        memory: Float[Array, "B P D"] | None = None,
        cache: KeyValueCache | None = None,
    ) -> tuple[Float[Array, "B L D"], KeyValueCache | None]:
        """Attends to the sequence itself; the arguments are those of `GroupedQueryAttention`. A cache holds the
        compressed vectors, and the turned key that all heads share.
        """
        if memory is not None:
            raise ValueError("latent attention is of a sequence to itself: use grouped_query for cross-attention")
        attention, positions = self.attention, mask.query_positions(x.shape[1])
        q = self._queries(x)
        plain, turning = jnp.split(q, [self.head_dim], axis=-1)
        q = jnp.concatenate([plain, rotate(turning, positions, attention)], axis=-1)
        compressed, shared = jnp.split(project(self, "kv_down", x), [attention.kv_rank], axis=-1)
        compressed, shared = self.kv_norm(compressed), rotate(shared[:, :, None], positions, attention)
        if cache is not None:
            cache = cache.write(mask, compressed[:, :, None], shared)
            seen, mask = cache.seen_by(mask, x.shape[1])
            out = self._absorbed(q, varying(seen.keys, [TENSOR]), varying(seen.values, [TENSOR]), mask)
        else:
            # Devices along `tensor` part behind the compression: their gradients are summed in its few dimensions.
            out = self._expanded(q, varying(compressed, [TENSOR]), varying(shared, [TENSOR]), mask)
        return project(self, "out", out.reshape(*x.shape[:2], -1)), cache

    def _expanded(
        self,
        q: Float[Array, "B L H N"],
        compressed: Float[Array, "B L rank"],
        shared: Float[Array, "B L 1 rope"],
        mask: Mask,
    ) -> Float[Array, "B L H W"]:
        """Every head's keys and values are formed: less work where many queries meet them, as in training."""
        attention = self.attention
        keys_values = project(self, "kv_up", compressed).reshape(*q.shape[:3], -1)
        k, v = jnp.split(keys_values, [self.head_dim], axis=-1)
        k = jnp.concatenate([k, jnp.broadcast_to(shared, (*k.shape[:3], attention.rope_dim))], axis=-1)
        return KERNELS[attention.kernel].attend(q, k, v, mask, attention.chunk, attention.scale)

    def _absorbed(
        self,
        q: Float[Array, "B L H N"],
        compressed: Float[Array, "B P 1 rank"],
        shared: Float[Array, "B P 1 rope"],
        mask: Mask,
    ) -> Float[Array, "B L H W"]:
        """The same with the matrices of keys and values moved to the queries and the outputs: all heads attend to the
        compressed vectors themselves, which are all that decoding has to read (DeepSeek-V2, section 2.1.2).
        """
        attention = self.attention
        weight = gather(self.kv_up, q.dtype)
        if (adapter := adapter_of(self, "kv_up", q.dtype)) is not None:
            weight = weight + adapter.down @ adapter.up
        of_keys, of_values = jnp.split(weight.reshape(weight.shape[0], q.shape[2], -1), [self.head_dim], axis=-1)
        plain, turned = jnp.split(q, [self.head_dim], axis=-1)
        q = jnp.concatenate([jnp.einsum("blhn,rhn->blhr", plain, of_keys), turned], axis=-1)
        k = jnp.concatenate([compressed, shared], axis=-1)
        scale = attention.scale or (self.head_dim + attention.rope_dim) ** -0.5
        out = KERNELS[attention.kernel].attend(q, k, compressed, mask, attention.chunk, scale)
        return jnp.einsum("blhr,rhw->blhw", out, of_values)

    def _queries(self, x: Float[Array, "B L D"]) -> Float[Array, "B L H N"]:
        if self.attention.query_rank:
            compressed = self.q_norm(project(self, "q_down", x))
            q = project(self, "q_up", varying(compressed, [TENSOR]))
        else:
            q = project(self, "q", varying(x, [TENSOR]))
        return q.reshape(*q.shape[:2], -1, self.head_dim + self.attention.rope_dim)

    @classmethod
    def cache(
        cls, model: ModelConfig, attention: AttentionConfig, batch: int, length: int, dtype: DTypeLike
    ) -> KeyValueCache:
        """An empty cache of the whole layer."""
        return KeyValueCache.empty(batch, length, (1, 1), (attention.kv_rank, attention.rope_dim), dtype)

    @classmethod
    def check(cls, run: RunConfig) -> None:
        """Raises ConfigError on sizes that are missing or odd, and on fields that this kind does not have."""
        model, attention = run.model, run.attention
        each(run, "attention.kv_rank attention.rope_dim", positive)
        if attention.rope_dim % 2:
            raise ConfigError(
                f"attention.rope_dim={attention.rope_dim} is odd: rotary positions turn pairs, use an even size"
            )
        if model.num_kv_heads != model.num_heads:
            raise ConfigError(
                f"model.num_kv_heads={model.num_kv_heads} with attention.kind='latent', where each head has its own "
                f"keys: set model.num_kv_heads={model.num_heads}"
            )
        if attention.rope_fraction != 1:
            raise ConfigError(
                f"attention.rope_fraction={attention.rope_fraction} with attention.kind='latent', which turns "
                "attention.rope_dim dimensions: leave it at 1"
            )
        for name in NOT_OFFERED:
            if getattr(attention, name):
                raise ConfigError(
                    f"attention.{name}={getattr(attention, name)!r} with attention.kind='latent', which has none: "
                    f"leave it at {getattr(AttentionConfig(), name)!r}"
                )

    @classmethod
    def sizes(cls, run: RunConfig) -> Iterator[Size]:
        """The dimensions that the mesh cuts; a head is never cut."""
        model, attention = run.model, run.attention
        yield Size("embed", "model.d_model", model.d_model)
        yield Size("heads", "model.num_heads", model.num_heads)
        if attention.query_rank:
            yield Size("latent", "attention.query_rank", attention.query_rank)
        yield Size("latent", "attention.kv_rank", attention.kv_rank)
        value = _value_dim(model, attention)
        yield Size("heads_in", f"model.num_heads * {value} (size of a head's values)", model.num_heads * value)

    @classmethod
    def matrices(cls, model: ModelConfig, attention: AttentionConfig) -> dict[str, tuple[int, int]]:
        """The shapes of the matrices that every token is multiplied with, by name."""
        heads, size, value = model.num_heads, model.head_dim + attention.rope_dim, _value_dim(model, attention)
        rank, width = attention.query_rank, model.d_model
        queries = {"q_down": (width, rank), "q_up": (rank, heads * size)} if rank else {"q": (width, heads * size)}
        return queries | {
            "kv_down": (width, attention.kv_rank + attention.rope_dim),
            "kv_up": (attention.kv_rank, heads * (model.head_dim + value)),
            "out": (heads * value, width),
        }

    @classmethod
    def vector_params(cls, model: ModelConfig, attention: AttentionConfig) -> int:
        """Scales of the norms of the compressed vectors."""
        return attention.query_rank + attention.kv_rank

    @classmethod
    def score_multiply_adds(cls, model: ModelConfig, attention: AttentionConfig, keys: int) -> int:
        """Multiply-adds of one query's scores and of its sum of values, over so many keys."""
        return model.num_heads * (model.head_dim + attention.rope_dim + _value_dim(model, attention)) * keys


def _value_dim(model: ModelConfig, attention: AttentionConfig) -> int:
    return attention.value_dim or model.head_dim
