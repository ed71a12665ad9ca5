"""What section `data` of a run has to satisfy."""

from moe_jax.config.rules import each, not_negative, positive
from moe_jax.config.schema import RunConfig
from moe_jax.data.sources import parse_sources
from moe_jax.data.split import check_holdout_fraction
from moe_jax.data.tokenizers import check_tokenizer


def check(run: RunConfig) -> None:
    """Raises ConfigError on the first condition of section `data` that does not hold.

    Whether the vocabulary has room for the tokenizer is checked by `load_corpus`, since a run that is only counted or
    compiled may have any vocabulary.
    """
    each(run, "data.sequence_length data.batch_size", positive)
    each(run, "data.max_bytes", not_negative)
    check_tokenizer(run.data.tokenizer)
    check_holdout_fraction(run.data.holdout_fraction)
    parse_sources(run.data)
