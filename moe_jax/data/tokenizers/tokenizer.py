"""What a tokenizer is, and how a corpus gets one."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32, Integer

from moe_jax.config.schema import DataConfig

BYTES = 256
CHUNK = 1 << 22  # bytes of text that are encoded at once; the encodings take several times that


@runtime_checkable
class Tokenizer(Protocol):
    """Ids 0 .. vocab_size-1. `end_of_document` is one of them, and no text encodes to it."""

    vocab_size: int
    end_of_document: int
    # UTF-8 bytes a token stands for. The end of document stands for 0, or for -1 where the tokenizer puts a space that
    # is not there before each document: then the sum over a document is right. All are 0 where that is not known.
    bytes_per_token: Int32[np.ndarray, " V"]

    def encode(self, text: str) -> Int32[np.ndarray, " tokens"]:
        """Ids of a text."""

    def encode_batch(self, texts: Sequence[bytes]) -> Iterator[Integer[np.ndarray, " tokens"]]:
        """Ids of each text, which is given as UTF-8, in a compact integer type."""

    def decode(self, ids: Integer[np.ndarray, " tokens"]) -> str:
        """The text of `ids`. Ids that stand for no text are left out, bytes that are no character become U+FFFD."""


class TrainingText(NamedTuple):
    """The texts that a tokenizer may be trained on, read when they are iterated over."""

    documents: int
    digest: str  # of the texts
    read: Callable[[], Iterable[bytes]]


class TokenizerKind(NamedTuple):
    """A kind of tokenizer, by its prefix in `TOKENIZERS`."""

    argument: str  # what stands behind the prefix and a colon; empty: nothing may
    build: Callable[[TrainingText, DataConfig, int, Path], str]  # (texts, data, vocabulary, cache) to a serialized form
    open: Callable[[str], Tokenizer]  # the tokenizer of a serialized form
    fingerprint: Callable[[DataConfig, int], object] = lambda config, vocab_size: None  # what else decides the ids
    trained: bool = False  # whether it depends on the training text
    encodes: bool = True  # whether it can encode text
    names_end: bool = False  # whether data.end_of_document may name one of its tokens
    check: Callable[[DataConfig], None] = lambda config: None  # raises ConfigError for fields that do not fit it
    slow: bool = False  # whether encoding takes longer than handing the text to another process


def compact_dtype(vocab_size: int) -> type[np.unsignedinteger]:
    """The smaller of uint16 and uint32 that holds every id."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def chunks(texts: Iterable[bytes], size: int = CHUNK) -> Iterator[list[bytes]]:
    """The texts in lists of about `size` bytes; a longer text has a list of its own."""
    chunk: list[bytes] = []
    total = 0
    for text in texts:
        if chunk and total + len(text) > size:
            yield chunk
            chunk, total = [], 0
        chunk.append(text)
        total += len(text)
    if chunk:
        yield chunk
