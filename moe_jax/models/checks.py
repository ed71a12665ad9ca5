"""What sections `model` and `attention` of a run have to satisfy, and which sizes of a model the mesh cuts."""

from collections.abc import Iterator

from moe_jax.config.rules import divides, each, not_negative, one_of, positive
from moe_jax.config.schema import RunConfig
from moe_jax.models.attention import ATTENTIONS
from moe_jax.models.attention.kernels import KERNELS
from moe_jax.models.block import REMAT
from moe_jax.moe.checks import sizes as moe_sizes
from moe_jax.moe.feed_forward import ACTIVATIONS
from moe_jax.parallel.checks import Size

DTYPES = ("float32", "bfloat16", "float64")


def check(run: RunConfig) -> None:
    """Raises ConfigError on the first condition that does not hold."""
    model, attention = run.model, run.attention
    each(
        run,
        "model.num_layers model.d_model model.d_ff model.num_heads model.num_kv_heads model.head_dim model.vocab_size "
        "model.loss_chunk model.norm_eps model.init_scale attention.chunk attention.rope_theta",
        positive,
    )
    each(run, "attention.window", not_negative)
    one_of("model.activation", model.activation, ACTIVATIONS)
    one_of("model.dtype", model.dtype, DTYPES)
    one_of("model.remat", model.remat, REMAT)
    one_of("attention.kind", attention.kind, ATTENTIONS)
    one_of("attention.kernel", attention.kernel, KERNELS)
    ATTENTIONS[attention.kind].check(run)
    length = run.data.sequence_length
    divides("model.loss_chunk", min(model.loss_chunk, length), "data.sequence_length", length)
    KERNELS[attention.kernel].check(run)


def sizes(run: RunConfig) -> Iterator[Size]:
    """The dimensions of all weights that the mesh cuts."""
    model = run.model
    yield from ATTENTIONS[run.attention.kind].sizes(run)
    yield Size("vocab_in", "model.vocab_size", model.vocab_size)
    yield Size("vocab", "model.vocab_size", model.vocab_size)
    yield Size("mlp_in", "model.d_ff", model.d_ff)
    yield from moe_sizes(run)
