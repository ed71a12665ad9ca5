"""Tokenizers turn text into ids and back, and know how many bytes each token stands for.

A new tokenizer is one class like those below and one line in `TOKENIZERS`.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import tokenizers
from absl import logging
from jaxtyping import Int32, Integer
from tokenizers import decoders, models, pre_tokenizers, trainers

from moe_jax.config.rules import ConfigError, one_of
from moe_jax.data.cache import cache_key, publish

BYTES = 256
CHUNK = 1 << 22  # bytes of text that are encoded at once; the encodings take several times that


@runtime_checkable
class Tokenizer(Protocol):
    """Ids 0 .. vocab_size-1. `end_of_document` is the last of them, and no text encodes to it."""

    vocab_size: int
    end_of_document: int
    bytes_per_token: Int32[np.ndarray, " V"]  # UTF-8 bytes a token stands for; 0 for end_of_document

    def encode(self, text: str) -> Int32[np.ndarray, " tokens"]:
        """Ids of a text."""

    def encode_batch(self, texts: Sequence[bytes]) -> Iterator[Integer[np.ndarray, " tokens"]]:
        """Ids of each text, which is given as UTF-8, in a compact integer type."""

    def decode(self, ids: Integer[np.ndarray, " tokens"]) -> str:
        """The text of `ids`. Ids that stand for no text are left out, bytes that are no character become U+FFFD."""


class ByteTokenizer:
    """A token a byte, and one for the end of a document: 257 ids."""

    vocab_size = BYTES + 1
    end_of_document = BYTES

    def __init__(self):
        self.bytes_per_token = np.append(np.ones(BYTES, np.int32), np.int32(0))

    def encode(self, text: str) -> Int32[np.ndarray, " tokens"]:
        """The UTF-8 bytes of the text."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def encode_batch(self, texts: Sequence[bytes]) -> Iterator[Integer[np.ndarray, " tokens"]]:
        """The texts themselves, not copied."""
        return (np.frombuffer(text, np.uint8) for text in texts)

    def decode(self, ids: Integer[np.ndarray, " tokens"]) -> str:
        """The text of `ids`."""
        ids = np.asarray(ids)
        return ids[ids < BYTES].astype(np.uint8).tobytes().decode(errors="replace")


class BPETokenizer:
    """Byte-level byte-pair encoding (Sennrich et al. 2016, over bytes as in GPT-2): any text, lossless."""

    def __init__(self, serialized: str):
        """Opens what `train` returned."""
        self._bpe = tokenizers.Tokenizer.from_str(serialized)
        # This is none of the BPE's own special tokens, which would be recognised where a document spells them.
        self.end_of_document = self._bpe.get_vocab_size()
        self.vocab_size = self.end_of_document + 1
        # The byte-level alphabet has one character for each byte.
        self.bytes_per_token = np.zeros(self.vocab_size, np.int32)
        for token, i in self._bpe.get_vocab().items():
            self.bytes_per_token[i] = len(token)

    @staticmethod
    def train(texts: Sequence[bytes], vocab_size: int) -> str:
        """Trains a BPE and returns it serialized.

        Its tokens and the end of document are at most `vocab_size` ids, and fewer if the text is short. The result
        depends on the texts alone, not on the number of threads.
        """
        bpe = tokenizers.Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 1,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        bpe.train_from_iterator((text.decode() for text in texts), trainer, length=len(texts))
        return bpe.to_str()

    def encode(self, text: str) -> Int32[np.ndarray, " tokens"]:
        """Ids of a text."""
        return np.array(self._bpe.encode(text).ids, np.int32)

    def encode_batch(self, texts: Sequence[bytes]) -> Iterator[Integer[np.ndarray, " tokens"]]:
        """Ids of each text; all cores encode."""
        dtype = compact_dtype(self.vocab_size)
        for chunk in _chunks(texts):
            for encoding in self._bpe.encode_batch_fast([text.decode() for text in chunk]):
                yield np.array(encoding.ids, dtype)

    def decode(self, ids: Integer[np.ndarray, " tokens"]) -> str:
        """The text of `ids`."""
        ids = np.asarray(ids)
        return self._bpe.decode(ids[ids < self.end_of_document].tolist())


def compact_dtype(vocab_size: int) -> type[np.unsignedinteger]:
    """The smaller of uint16 and uint32 that holds every id."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def _chunks(texts: Sequence[bytes]) -> Iterator[list[bytes]]:
    chunk: list[bytes] = []
    size = 0
    for text in texts:
        chunk.append(text)
        size += len(text)
        if size >= CHUNK:
            yield chunk
            chunk, size = [], 0
    yield chunk


def build_bpe(texts: Sequence[bytes], vocab_size: int, cache_dir: Path) -> str:
    """The result of `BPETokenizer.train`, from `cache_dir` if it was trained on the same texts before."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(hashlib.sha256(text).digest())
    directory = cache_dir / "bpe" / cache_key(tokenizers.__version__, digest.hexdigest(), vocab_size)
    if not directory.is_dir():
        logging.info("Training a BPE of %d tokens on %d documents", vocab_size, len(texts))
        with publish(directory) as draft:
            (draft / "tokenizer.json").write_text(BPETokenizer.train(texts, vocab_size), encoding="utf-8")
    return (directory / "tokenizer.json").read_text(encoding="utf-8")


class TokenizerKind(NamedTuple):
    """How a corpus gets a tokenizer."""

    build: Callable[[Sequence[bytes], int, Path], str]  # (training texts, vocabulary size, cache) to a serialized form
    open: Callable[[str], Tokenizer]  # the tokenizer of a serialized form
    trained: bool  # whether the training texts and the vocabulary size decide which ids it gives


TOKENIZERS = {
    "bytes": TokenizerKind(lambda texts, vocab_size, cache_dir: "", lambda serialized: ByteTokenizer(), trained=False),
    "bpe": TokenizerKind(build_bpe, BPETokenizer, trained=True),
}


def check_tokenizer(name: str) -> None:
    """Raises ConfigError unless `TOKENIZERS` has `data.tokenizer`."""
    one_of("data.tokenizer", name, TOKENIZERS)


def check_vocab_size(name: str, vocab_size: int) -> None:
    """Raises ConfigError for an unknown `data.tokenizer`, and where `model.vocab_size` has no room for its ids."""
    check_tokenizer(name)
    if vocab_size <= BYTES:
        raise ConfigError(
            f"model.vocab_size={vocab_size} is smaller than the {BYTES + 1} ids of data.tokenizer={name!r} (256 bytes "
            f"and the end of document): use at least {BYTES + 1}"
        )
