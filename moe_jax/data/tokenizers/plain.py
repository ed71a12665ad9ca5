"""Tokenizers that need no vocabulary of their own: a token a byte, and ids that are there already."""

import json
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int32, Integer

from moe_jax.config.rules import ConfigError, between, positive
from moe_jax.config.schema import DataConfig
from moe_jax.data.tokenizers.tokenizer import BYTES


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


class Ids:
    """The ids of text that was tokenized elsewhere. What they stand for is not known."""

    def __init__(self, serialized: str):
        """Opens what `describe_ids` returned."""
        self.vocab_size, self.end_of_document = json.loads(serialized)
        self.bytes_per_token = np.zeros(self.vocab_size, np.int32)

    def encode(self, text: str) -> Int32[np.ndarray, " tokens"]:
        """Raises ConfigError: there is no text that the ids are known to stand for."""
        raise ConfigError(
            "data.tokenizer='ids' knows no text: set data.tokenizer='hf:FILE' to the one that made the ids"
        )

    def encode_batch(self, texts: Sequence[bytes]) -> Iterator[Integer[np.ndarray, " tokens"]]:
        """Raises ConfigError, as `encode` does."""
        return (self.encode(text.decode()) for text in texts)

    def decode(self, ids: Integer[np.ndarray, " tokens"]) -> str:
        """The numbers, between spaces."""
        return " ".join(map(str, np.asarray(ids).tolist()))


def describe_ids(config: DataConfig) -> str:
    """The serialized form of `Ids`: the vocabulary size and the end of document.

    That is the id `data.end_of_document`, or a new one behind the vocabulary where it is empty. Raises ConfigError
    where the sizes are missing or do not fit.
    """
    if not config.ids_vocab_size:
        raise ConfigError("data.ids_vocab_size=0 with data.tokenizer='ids': give the number of ids of the vocabulary")
    positive("data.ids_vocab_size", config.ids_vocab_size)
    end = config.end_of_document
    if not end:
        return json.dumps([config.ids_vocab_size + 1, config.ids_vocab_size])
    if not (end.isascii() and end.isdecimal() and len(end) < 20):
        raise ConfigError(f"data.end_of_document={end!r} with data.tokenizer='ids': give its id, a whole number")
    between("data.end_of_document", int(end), 0, config.ids_vocab_size - 1)
    return json.dumps([config.ids_vocab_size, int(end)])


def check_ids(config: DataConfig) -> None:
    """Raises ConfigError as `describe_ids` does."""
    describe_ids(config)
