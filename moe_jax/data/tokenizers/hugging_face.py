"""Tokenizers of Hugging Face, from a file tokenizer.json, through the library `tokenizers`."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Int32, Integer
from tokenizers import pre_tokenizers

from moe_jax.config.rules import ConfigError, MachineError
from moe_jax.config.schema import DataConfig
from moe_jax.data.tokenizers.tokenizer import TrainingText, chunks, compact_dtype

BYTE_FALLBACK = re.compile(r"<0x[0-9A-F]{2}>")  # a token of SentencePiece for one byte
MOST_IDS = 1 << 28  # far more than any vocabulary has
SPACE = "\u2581"  # SentencePiece's character for a space


class HuggingFaceTokenizer:
    """Encodes as the file says, without the special tokens that it may put around a text.

    Text that spells a special token is encoded like any other text, so that no text encodes to the end of document.
    """

    def __init__(self, serialized: str):
        """Opens what `serialize` returned."""
        parts = json.loads(serialized)
        self._tokenizer = tokenizers.Tokenizer.from_str(parts["tokenizer"])
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        known = 1 + max(vocabulary.values(), default=-1)
        self.end_of_document = vocabulary[parts["end_of_document"]] if parts["end_of_document"] else known
        self.vocab_size = max(known, self.end_of_document + 1)
        self.bytes_per_token = _bytes_per_token(vocabulary, self.vocab_size, json.loads(parts["tokenizer"]))
        self.bytes_per_token[self.end_of_document] = 0
        # Some put a space before every text, which is then a byte more than the text has.
        self.bytes_per_token[self.end_of_document] = 1 - self.bytes_per_token[self.encode("x")].sum()

    def encode(self, text: str) -> Int32[np.ndarray, " tokens"]:
        """Ids of a text."""
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def encode_batch(self, texts: Sequence[bytes]) -> Iterator[Integer[np.ndarray, " tokens"]]:
        """Ids of each text; all cores encode."""
        dtype = compact_dtype(self.vocab_size)
        for chunk in chunks(texts):
            decoded = [text.decode() for text in chunk]
            for encoding in self._tokenizer.encode_batch_fast(decoded, add_special_tokens=False):
                yield np.array(encoding.ids, dtype)

    def decode(self, ids: Integer[np.ndarray, " tokens"]) -> str:
        """The text of `ids`, as far as the tokenizer keeps it."""
        ids = np.asarray(ids)
        known = ids[(ids < self.vocab_size) & (ids != self.end_of_document)]
        return self._tokenizer.decode(known.tolist(), skip_special_tokens=False)


def serialize(texts: TrainingText, config: DataConfig, vocab_size: int, cache_dir: Path) -> str:
    """The file and the end of document, as one JSON text. Raises ConfigError, in one line, for what is no tokenizer."""
    return _serialize(config)


def hugging_face_fingerprint(config: DataConfig, vocab_size: int) -> object:
    """A hash of the file and the end of document."""
    return hashlib.sha256(_serialize(config).encode()).hexdigest()


def _serialize(config: DataConfig) -> str:
    path = Path(config.tokenizer.partition(":")[2])
    text = _read(config, path)
    try:
        vocabulary = tokenizers.Tokenizer.from_str(text).get_vocab(with_added_tokens=True)
    except Exception as error:  # the library raises nothing narrower
        raise ConfigError(
            f"data.tokenizer={config.tokenizer!r} is no tokenizer.json ({error}): check the file"
        ) from None
    if vocabulary and max(vocabulary.values()) >= MOST_IDS:
        raise ConfigError(
            f"data.tokenizer={config.tokenizer!r} has the id {max(vocabulary.values())}, more than {MOST_IDS} ids: "
            "check the file"
        )
    end = config.end_of_document or _named_end(path)
    if end and end not in vocabulary:
        raise ConfigError(
            f"data.end_of_document={end!r} is no token of data.tokenizer={config.tokenizer!r}: name one that it has, "
            "or leave it empty for a new id behind the vocabulary"
        )
    return json.dumps({"tokenizer": text, "end_of_document": end})


def _read(config: DataConfig, path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError, RuntimeError):
        raise ConfigError(
            f"data.tokenizer={config.tokenizer!r} is no file of text: give hf:PATH/tokenizer.json"
        ) from None
    except OSError as error:
        raise MachineError(
            f"data.tokenizer={config.tokenizer!r} cannot be read ({error.strerror}): make it readable"
        ) from None


def _named_end(path: Path) -> str:
    """The eos_token in tokenizer_config.json beside the file; empty where it names none."""
    try:
        named = json.loads((path.expanduser().parent / "tokenizer_config.json").read_text(encoding="utf-8"))
        end = named.get("eos_token") or ""
        return end["content"] if isinstance(end, dict) else str(end)
    except (OSError, ValueError, KeyError, AttributeError):
        return ""


def _bytes_per_token(vocabulary: dict[str, int], size: int, description: dict[str, Any]) -> Int32[np.ndarray, " V"]:
    """UTF-8 bytes that each token stands for."""
    counts = np.zeros(size, np.int32)
    added = {token["content"] for token in description.get("added_tokens", [])}
    byte_level = any(_mentions(description.get(part), "ByteLevel") for part in ("pre_tokenizer", "decoder"))
    byte_fallback = description["model"].get("byte_fallback", False)
    continues = description["model"].get("continuing_subword_prefix") or ""
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    for token, i in vocabulary.items():
        if byte_fallback and BYTE_FALLBACK.fullmatch(token):
            counts[i] = 1
        elif token in added:
            counts[i] = len(token.encode())
        elif byte_level and alphabet.issuperset(token):
            counts[i] = len(token)  # a character for each byte
        else:
            counts[i] = len(token.removeprefix(continues).replace(SPACE, " ").encode())
    return counts


def _mentions(part: Any, kind: str) -> bool:
    """Whether a part of a tokenizer.json, which may be a sequence of parts, is of the kind."""
    if isinstance(part, dict):
        return part.get("type") == kind or any(map(lambda value: _mentions(value, kind), part.values()))
    return isinstance(part, list) and any(_mentions(value, kind) for value in part)
