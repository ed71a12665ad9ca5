"""What sections `model` and `attention` of a run have to satisfy, and which sizes of a model the mesh cuts."""

from collections.abc import Iterator

from moe_jax.config.rules import ConfigError, between, divides, each, not_blank, not_negative, one_of, positive
from moe_jax.config.schema import AttentionConfig, RunConfig
from moe_jax.models.attention import ATTENTIONS
from moe_jax.models.attention.kernels import KERNELS
from moe_jax.models.attention.rotary import SCALINGS
from moe_jax.models.block import REMAT
from moe_jax.moe.checks import sizes as moe_sizes
from moe_jax.moe.feed_forward import ACTIVATIONS
from moe_jax.parallel.checks import Size

DTYPES = ("float32", "bfloat16", "float64")
MOST_LAYERS = 10_000  # far beyond any model: a list of layers is made before the rest is checked
NORM_PLACES = ("pre", "post")
QK_NORMS = ("", "head", "projection")
# Fields of AttentionConfig, and the scalings of rotary positions that use them.
SCALED_BY = {
    "rope_factor": ("linear", "llama3", "yarn"),
    "rope_original_length": ("llama3", "yarn"),
    "rope_low_frequency": ("llama3",),
    "rope_high_frequency": ("llama3",),
    "rope_beta_slow": ("yarn",),
    "rope_beta_fast": ("yarn",),
    "rope_truncate": ("yarn",),
    "rope_attention_factor": ("yarn",),
}


def check(run: RunConfig) -> None:
    """Raises ConfigError on the first condition that does not hold."""
    model, attention = run.model, run.attention
    not_negative("lora.rank", run.lora.rank)
    positive("lora.alpha", run.lora.alpha)
    not_blank("lora.targets", run.lora.targets)
    if run.lora.rank and not run.lora.targets:
        raise ConfigError("lora.targets=() leaves no matrix to adapt: give some, or lora.rank=0")
    each(
        run,
        "model.num_layers model.d_model model.d_ff model.num_heads model.num_kv_heads model.head_dim model.vocab_size "
        "model.loss_chunk model.norm_eps model.init_scale model.embedding_scale model.residual_scale "
        "model.logits_scale attention.chunk attention.rope_theta attention.rope_fraction attention.rope_factor "
        "attention.rope_low_frequency attention.rope_high_frequency attention.rope_beta_slow attention.rope_beta_fast",
        positive,
    )
    each(
        run,
        "attention.window attention.scale attention.rope_original_length attention.rope_attention_factor "
        "attention.query_rank attention.kv_rank attention.rope_dim attention.value_dim",
        not_negative,
    )
    if model.num_layers > MOST_LAYERS:
        raise ConfigError(f"model.num_layers={model.num_layers} is more than {MOST_LAYERS}: lower it")
    for layer, window in enumerate(attention.windows):
        not_negative(f"attention.windows[{layer}]", window)
    if attention.windows and attention.window:
        raise ConfigError(
            f"attention.window={attention.window} beside attention.windows={attention.windows}: give one of them"
        )
    one_of("model.norm_place", model.norm_place, NORM_PLACES)
    one_of("attention.qk_norm", attention.qk_norm, QK_NORMS)
    _rotary(attention)
    one_of("model.activation", model.activation, ACTIVATIONS)
    one_of("model.dtype", model.dtype, DTYPES)
    one_of("model.remat", model.remat, REMAT)
    one_of("attention.kind", attention.kind, ATTENTIONS)
    one_of("attention.kernel", attention.kernel, KERNELS)
    ATTENTIONS[attention.kind].check(run)
    length = run.data.sequence_length
    divides("model.loss_chunk", min(model.loss_chunk, length), "data.sequence_length", length)
    KERNELS[attention.kernel].check(run)


def _rotary(attention: AttentionConfig) -> None:
    """A setting of how positions are stretched has something to act on, and what acts has all that it needs."""
    one_of("attention.rope_scaling", attention.rope_scaling, SCALINGS)
    between("attention.rope_fraction", attention.rope_fraction, 0, 1)
    for name, users in SCALED_BY.items():
        value, default = getattr(attention, name), getattr(AttentionConfig(), name)
        if value != default and attention.rope_scaling not in users:
            raise ConfigError(
                f"attention.{name}={value} has no effect with attention.rope_scaling={attention.rope_scaling!r}: leave "
                f"it at {default}, or use one of {', '.join(users)}"
            )
    if attention.rope_scaling in SCALED_BY["rope_original_length"]:
        positive("attention.rope_original_length", attention.rope_original_length)
    if not attention.rope_low_frequency < attention.rope_high_frequency:
        raise ConfigError(
            f"attention.rope_low_frequency={attention.rope_low_frequency} is not below "
            f"attention.rope_high_frequency={attention.rope_high_frequency}: lower it"
        )
    if attention.rope_beta_slow > attention.rope_beta_fast:
        raise ConfigError(
            f"attention.rope_beta_slow={attention.rope_beta_slow} is above "
            f"attention.rope_beta_fast={attention.rope_beta_fast}: lower it"
        )


def sizes(run: RunConfig) -> Iterator[Size]:
    """The dimensions of all weights that the mesh cuts."""
    model = run.model
    yield from ATTENTIONS[run.attention.kind].sizes(run)
    yield Size("vocab_in", "model.vocab_size", model.vocab_size)
    yield Size("vocab", "model.vocab_size", model.vocab_size)
    yield Size("mlp_in", "model.d_ff", model.d_ff)
    yield from moe_sizes(run)
