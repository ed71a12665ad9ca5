"""Documents of text that was tokenized elsewhere: their ids, checked against the tokenizer of the run."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_jax.config.rules import ConfigError
from moe_jax.data.documents import Document
from moe_jax.data.tokenizers.tokenizer import Tokenizer

LONGEST = 1 << 20  # ids of a document; a longer run without an end of document is cut


def documents_of(
    spec: str, path: str, name: str, domain: str, blocks: Iterable[NDArray[Any]], tokenizer: Tokenizer
) -> Iterator[Document | None]:
    """Cuts a stream of ids at each end of document; a document is named by the position of its first id.

    Two ends in a row are an empty document, which is None. Raises ConfigError for an id outside the vocabulary.
    """
    position = start = 0
    pending: list[NDArray[Any]] = []
    for block in blocks:
        check_ids(spec, path, block, position, tokenizer)
        ends = np.flatnonzero(block == tokenizer.end_of_document)
        for piece, ended in _pieces(block, ends):
            pending.append(piece)
            position += len(piece)
            if ended or position - start >= LONGEST:
                yield _document(pending, domain, f"{name}:{start}")
                position += ended
                start, pending = position, []
    if position > start:
        yield _document(pending, domain, f"{name}:{start}")


def check_ids(spec: str, path: str, ids: NDArray[Any], position: int, tokenizer: Tokenizer) -> None:
    """Raises ConfigError if an id is outside the vocabulary; `position` is that of the first id in the file."""
    outside = (ids < 0) | (ids >= tokenizer.vocab_size)
    if outside.any():
        first = int(np.argmax(outside))
        raise ConfigError(
            f"data.source={spec!r}: id {ids[first]} at position {position + first} of {path!r} is outside the "
            f"{tokenizer.vocab_size} ids of data.tokenizer: check that, data.ids_vocab_size and data.ids_dtype"
        )


def _pieces(block: NDArray[Any], ends: NDArray[Any]) -> Iterator[tuple[NDArray[Any], bool]]:
    """The ids between ends, none longer than LONGEST, and whether an end follows."""
    begin = 0
    for end in (*ends.tolist(), len(block)):
        while end - begin > LONGEST:
            yield block[begin : begin + LONGEST], False
            begin += LONGEST
        yield block[begin:end], end < len(block)
        begin = end + 1


def _document(pieces: list[NDArray[Any]], domain: str, name: str) -> Document | None:
    ids = np.concatenate(pieces).astype(np.int32)
    return Document(b"", domain, name, ids) if len(ids) else None
