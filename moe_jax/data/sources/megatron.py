"""Megatron-LM's pair of files: PREFIX.bin holds the ids of all documents, PREFIX.idx where each begins."""

import dataclasses
import itertools
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moe_jax.config.rules import ConfigError
from moe_jax.data.documents import Document, domain_name
from moe_jax.data.sources.files import Files
from moe_jax.data.sources.ids import check_ids
from moe_jax.data.sources.source import reading
from moe_jax.data.tokenizers.tokenizer import Tokenizer

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")  # magic, version, code of the dtype, sequences, document boundaries
DTYPES = {1: "u1", 2: "i1", 3: "i2", 4: "i4", 5: "i8", 8: "u2"}  # of Megatron-LM's codes, those of integers


class Pair(NamedTuple):
    """What the index says, memory-mapped."""

    dtype: np.dtype[Any]
    sizes: NDArray[Any]  # ids of each sequence
    offsets: NDArray[Any]  # bytes before each sequence
    documents: NDArray[Any]  # the first sequence of each document, and the number of sequences


@dataclasses.dataclass(frozen=True)
class Megatron:
    """`megatron:PREFIX`: PREFIX.bin and PREFIX.idx, or a glob of .idx files. The domain is the prefix's last part.

    An end of document that closes a document in the file is taken off: every document gets one anyway.
    """

    spec: str
    pattern: str
    tokenizer: Tokenizer

    def fingerprint(self) -> object:
        """Hashes of path, size and times of each file."""
        return [[index, Files(self.spec, str(Path(index).with_suffix(".bin"))).digest()] for index in self._indices()]

    def read(self) -> Iterator[Document | None]:
        """Reads the documents, one at a time."""
        for index in self._indices():
            pair = self._open(index)
            path = str(Path(index).with_suffix(".bin"))
            name, domain = Path(index).stem, domain_name(Path(index).stem)
            with reading(self.spec, path), open(path, "rb") as file:
                for d, (first, last) in enumerate(itertools.pairwise(pair.documents.tolist())):
                    ids = self._ids(file, path, pair, first, last)
                    if len(ids) and ids[-1] == self.tokenizer.end_of_document:
                        ids = ids[:-1]
                    yield Document(b"", domain, f"{name}:{d}", ids.astype(np.int32)) if len(ids) else None

    def sha256(self) -> str:
        """It is no archive."""
        return ""

    def _indices(self) -> list[str]:
        pattern = self.pattern if self.pattern.endswith(".idx") else f"{self.pattern.removesuffix('.bin')}.idx"
        return [path for path, _ in Files(self.spec, pattern).paths()]

    def _ids(self, file: Any, path: str, pair: Pair, first: int, last: int) -> NDArray[Any]:
        """The ids of the sequences first .. last-1, which are one document."""
        parts = []
        for sequence in range(first, last):
            file.seek(int(pair.offsets[sequence]))
            parts.append(np.fromfile(file, pair.dtype, int(pair.sizes[sequence])))
            if len(parts[-1]) != pair.sizes[sequence]:
                raise ConfigError(f"data.source={self.spec!r}: {path!r} is shorter than its index says: copy it again")
        ids = np.concatenate(parts) if parts else np.empty(0, pair.dtype)
        check_ids(self.spec, path, ids, int(pair.offsets[first]) // pair.dtype.itemsize if parts else 0, self.tokenizer)
        return ids

    def _open(self, index: str) -> Pair:
        with reading(self.spec, index), open(index, "rb") as file:
            header = file.read(HEADER.size)
        wrong = ConfigError(f"data.source={self.spec!r}: {index!r} is no index of Megatron-LM: check data.source")
        if len(header) < HEADER.size or not header.startswith(MAGIC):
            raise wrong
        _, version, code, sequences, documents = HEADER.unpack(header)
        if version != 1 or code not in DTYPES:
            raise wrong
        arrays, offset = [], HEADER.size
        for dtype, count in (("<i4", sequences), ("<i8", sequences), ("<i8", documents)):
            try:
                arrays.append(np.memmap(index, dtype, "r", offset, (count,)) if count else np.empty(0, dtype))
            except ValueError:  # the file ends before
                raise wrong from None
            offset += count * np.dtype(dtype).itemsize
        pair = Pair(np.dtype(DTYPES[code]).newbyteorder("<"), *arrays)
        if len(pair.documents) and pair.documents[-1] != sequences:
            raise wrong
        return pair
