"""What section `data` of a run has to satisfy."""

from moe_jax.config.rules import ConfigError, each, not_negative, one_of, positive
from moe_jax.config.schema import RunConfig
from moe_jax.data.cache import cache_root
from moe_jax.data.documents import printable
from moe_jax.data.sources import check_sources
from moe_jax.data.split import check_holdout_fraction
from moe_jax.data.tokenizers import check_tokenizer

IDS_DTYPES = ("uint8", "uint16", "uint32", "int32", "int64")


def check(run: RunConfig) -> None:
    """Raises ConfigError on the first condition of section `data` that does not hold.

    Whether the vocabulary has room for the tokenizer is checked by `load_corpus`, since a run that is only counted or
    compiled may have any vocabulary.
    """
    each(run, "data.sequence_length data.batch_size", positive)
    each(run, "data.max_bytes data.workers data.ids_vocab_size", not_negative)
    one_of("data.ids_dtype", run.data.ids_dtype, IDS_DTYPES)
    for name in ("source", "text_field", "prompt_field", "tokenizer", "end_of_document", "cache_dir"):
        _check_writable(f"data.{name}", getattr(run.data, name))
    if not run.data.text_field:
        raise ConfigError("data.text_field='' names no field: give the one that holds the text")
    cache_root(run.data)
    check_tokenizer(run.data)
    check_holdout_fraction(run.data.holdout_fraction)
    check_sources(run.data)


def _check_writable(name: str, value: str) -> None:
    """Raises ConfigError for bytes of a file name that are no UTF-8, which config.json and TensorBoard cannot hold."""
    if printable(value) != value:
        raise ConfigError(
            f"{name}='{printable(value)}' is not UTF-8: name the folder above it, which may hold such names, or a glob"
        )
