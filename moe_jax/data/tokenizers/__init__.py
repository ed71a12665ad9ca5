"""Tokenizers turn text into ids and back, and know how many bytes each token stands for.

A new tokenizer is one class with the methods of `Tokenizer` and one line in `TOKENIZERS`.
"""

from moe_jax.config.rules import ConfigError, one_of
from moe_jax.config.schema import DataConfig
from moe_jax.data.cache import cache_root
from moe_jax.data.tokenizers.bpe import BPETokenizer, trained_bpe
from moe_jax.data.tokenizers.hugging_face import HuggingFaceTokenizer, hugging_face_fingerprint, serialize
from moe_jax.data.tokenizers.plain import ByteTokenizer, Ids, check_ids, describe_ids
from moe_jax.data.tokenizers.tokenizer import BYTES, Tokenizer, TokenizerKind, TrainingText

TOKENIZERS = {
    "bytes": TokenizerKind("", lambda texts, config, vocab_size, cache_dir: "", lambda serialized: ByteTokenizer()),
    "bpe": TokenizerKind("", trained_bpe, BPETokenizer, lambda config, size: size, trained=True, slow=True),
    "hf": TokenizerKind("FILE", serialize, HuggingFaceTokenizer, hugging_face_fingerprint, slow=True, names_end=True),
    "ids": TokenizerKind(
        "",
        lambda texts, config, vocab_size, cache_dir: describe_ids(config),
        Ids,
        lambda config, vocab_size: describe_ids(config),
        check=check_ids,
        encodes=False,
        names_end=True,
    ),
}


def kind_of(config: DataConfig) -> TokenizerKind:
    """The kind of `data.tokenizer`. Raises ConfigError where `TOKENIZERS` does not have it, or it lacks its file."""
    name, colon, argument = config.tokenizer.partition(":")
    if name not in TOKENIZERS or (colon and not TOKENIZERS[name].argument):
        one_of("data.tokenizer", config.tokenizer, [_written(name) for name in TOKENIZERS])
    if TOKENIZERS[name].argument and not argument:
        raise ConfigError(f"data.tokenizer={config.tokenizer!r} names no file: write {_written(name)}")
    return TOKENIZERS[name]


def check_tokenizer(config: DataConfig) -> None:
    """Raises ConfigError for an unknown `data.tokenizer`, and for fields that do not fit it; no file is read."""
    kind = kind_of(config)
    if config.end_of_document and not kind.names_end:
        raise ConfigError(
            f"data.end_of_document={config.end_of_document!r} with data.tokenizer={config.tokenizer!r}, which has its "
            "own: leave it empty"
        )
    kind.check(config)


def check_ids_or_text(config: DataConfig, spec: str, holds_ids: bool) -> None:
    """Raises ConfigError where the source's ids are not those of `data.tokenizer`, or where that cannot encode text."""
    kind = kind_of(config)
    if holds_ids and kind.trained:
        raise ConfigError(
            f"data.source={spec!r} holds ids and data.tokenizer={config.tokenizer!r} makes its own: set "
            "data.tokenizer='hf:FILE' to the one that made them, or 'ids' with data.ids_vocab_size"
        )
    if not holds_ids and not kind.encodes:
        raise ConfigError(
            f"data.source={spec!r} holds text, which data.tokenizer={config.tokenizer!r} cannot encode: set "
            "data.tokenizer='hf:FILE'"
        )


def fixed_tokenizer(config: DataConfig, spec: str) -> Tokenizer:
    """The tokenizer of a source that holds ids. Raises ConfigError where that is one that has to be trained first."""
    check_ids_or_text(config, spec, holds_ids=True)
    kind = kind_of(config)
    return kind.open(kind.build(TrainingText(0, "", lambda: ()), config, 0, cache_root(config)))


def check_vocab_size(config: DataConfig, vocab_size: int) -> None:
    """Raises ConfigError where `model.vocab_size` has no room for the ids of `data.tokenizer`."""
    kind = kind_of(config)
    least = BYTES + 1 if kind.trained else fixed_tokenizer(config, "").vocab_size
    if vocab_size < least:
        ids = f"{least} ids of data.tokenizer={config.tokenizer!r}"
        what = "256 bytes and the end of document" if least == BYTES + 1 else "with the end of document"
        raise ConfigError(f"model.vocab_size={vocab_size} is smaller than the {ids} ({what}): use at least {least}")


def _written(name: str) -> str:
    argument = TOKENIZERS[name].argument
    return f"{name}:{argument}" if argument else name


__all__ = [
    "TOKENIZERS",
    "BPETokenizer",
    "ByteTokenizer",
    "HuggingFaceTokenizer",
    "Tokenizer",
    "TrainingText",
    "check_ids_or_text",
    "check_tokenizer",
    "check_vocab_size",
    "fixed_tokenizer",
    "kind_of",
]
