"""An index of all documents on disk: what decides about a document, in a record of fixed size, and what was decided.

Building a corpus reads every document twice: first to fill the index, and then, when the index says which documents are
kept, held out and sampled, to tokenize them. So the text is never in memory, nor is anything else that grows with it:
the index is read some thousand records at a time, and its flags are a memory-mapped file.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from moe_jax.config.rules import ConfigError
from moe_jax.data.documents import Document

# Halves of hashes, of the first 16 bytes: of the text, and of the name for each purpose that it is ranked for.
HASHES = [f"{purpose}_{half}" for purpose in ("text", "holdout", "sample") for half in ("high", "low")]
RECORD = np.dtype([*((name, "u8") for name in HASHES), ("length", "i8"), ("domain", "i4")])
CHUNK = 1 << 15  # records that are in memory at a time
MAX_DOMAINS = 1000  # each has an evaluation of its own

KEPT, HELDOUT, TRAIN = np.array([1, 2, 4], np.uint8)  # flags of a document
TOKENIZER = np.uint8(8)  # the flag of documents that the tokenizer is trained on

Records = NDArray[Any]  # of RECORD


class Entry(NamedTuple):
    """One document of the index, while its text is read again."""

    text_hash: int  # the first 8 bytes
    domain: int
    flags: int


class Index:
    """The documents of all sources, one after another. `spans[i]` are the positions of source i."""

    def __init__(self, directory: Path):
        """An empty index in a directory that exists."""
        self._directory = directory
        self._file = (directory / "documents").open("w+b")
        self._pending: list[tuple[int, ...]] = []
        self._domains: dict[str, int] = {}
        self.spans: list[range] = []
        self.skipped = 0
        self.flags: UInt8[np.ndarray, " documents"] = np.empty(0, np.uint8)

    def __len__(self) -> int:
        return self.spans[-1].stop if self.spans else 0

    @property
    def domains(self) -> list[str]:
        """The domains' names by their numbers in the index, in the order in which they came."""
        return list(self._domains)

    def add_source(self, spec: str, documents: Iterator[Document | None]) -> None:
        """Adds all documents of the next source. Raises ConfigError where it has none, or too many domains."""
        start, skipped = len(self), self.skipped
        count = 0
        for document in documents:
            if document is None:
                self.skipped += 1
                continue
            count += 1
            domain = self._domains.setdefault(document.domain, len(self._domains))
            if domain >= MAX_DOMAINS:
                raise ConfigError(
                    f"data.source={spec!r} has more than {MAX_DOMAINS} domains: name fewer in its field or folders"
                )
            name = document.name.encode(errors="surrogateescape")  # bytes of a file name that are no UTF-8 stay
            size = len(document.text) if document.ids is None else len(document.ids)
            hashes = text_hash(document), _hash(b"holdout:" + name), _hash(b"sample:" + name)
            self._pending.append((*(half for pair in hashes for half in pair), size, domain))
            if len(self._pending) == CHUNK:
                self._flush()
        self._flush()
        if not count:
            raise ConfigError(
                f"data.source={spec!r} holds no text ({self.skipped - skipped} files or lines are empty or binary): "
                "check the path and data.text_field"
            )
        self.spans.append(range(start, start + count))

    def complete(self) -> None:
        """Makes the flags, all of them 0, when every source has been added."""
        path = self._directory / "flags"
        path.write_bytes(b"")
        with path.open("r+b") as file:
            file.truncate(len(self))
        self.flags = np.memmap(path, np.uint8, "r+", shape=(len(self),))

    def chunks(self, span: range | None = None) -> Iterator[tuple[slice, Records]]:
        """(positions, records) of the whole index or of a span, CHUNK at a time."""
        span = range(len(self)) if span is None else span
        for start in range(span.start, span.stop, CHUNK):
            stop = min(start + CHUNK, span.stop)
            self._file.seek(start * RECORD.itemsize)
            yield slice(start, stop), np.fromfile(self._file, RECORD, stop - start)

    def entries(self, span: range) -> Iterator[Entry]:
        """The documents of a span, one after another."""
        for positions, records in self.chunks(span):
            columns = records["text_high"], records["domain"], self.flags[positions]
            yield from map(Entry, *(column.tolist() for column in columns))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _flush(self) -> None:
        self._file.seek(0, 2)
        self._file.write(np.array(self._pending, RECORD).tobytes())
        self._file.flush()
        self._pending = []


def text_hash(document: Document) -> tuple[int, int]:
    """The hash that makes two documents the same."""
    return _hash(document.content)


def _hash(data: bytes) -> tuple[int, int]:
    """The first 16 bytes of the SHA-256, which rank like the whole hash."""
    digest = hashlib.sha256(data).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:16], "big")
