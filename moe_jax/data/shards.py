"""Token ids of many documents on disk, in shards of a bounded size, written as they come and read piece by piece.

NAME.domains and NAME.starts have a number for each document, NAME.tokens.00000 and following the ids, end of document
included: little-endian, without a header. Where documents may have prompts, NAME.prompts says how many ids of each they
are. Ids are read and not mapped, so that memory does not grow with the corpus.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Integer
from numpy.typing import NDArray

from moe_jax.config.rules import MachineError

SHARD_TOKENS = 1 << 27  # ids in a shard: 256 or 512 MiB
RESIDENT = 1 << 24  # bytes of a file that is read into memory when it is opened, rather than piece by piece
BUFFER = 1 << 20  # ids that are gathered before they are written


@runtime_checkable
class Tokens(Protocol):
    """A long array of ids, of which pieces are read."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the ids."""

    def __len__(self) -> int:
        """How many ids there are."""

    def __getitem__(self, piece: slice) -> Integer[np.ndarray, " piece"]:
        """The ids start:stop, which lie within the array."""


class ShardWriter:
    """Writes the documents of one part of a corpus in the order in which they come."""

    def __init__(
        self, directory: Path, name: str, dtype: type[np.unsignedinteger], end_of_document: int, prompts: bool = False
    ):
        """Starts with no document; `dtype` has room for the end of document, `prompts` says that there may be some."""
        self._directory, self._name = directory, name
        self._dtype, self._end = np.dtype(dtype).newbyteorder("<"), end_of_document
        self._pending: list[NDArray[Any]] = []
        self._lengths: list[int] = []
        self._domains: list[int] = []
        self._prompts: list[int] | None = [] if prompts else None
        self._written = self._gathered = 0
        self._last_start = 0
        self._append("domains", b"")
        self._append("starts", np.zeros(1, "<i8").tobytes())
        self._append("tokens.00000", b"")
        if prompts:
            self._append("prompts", b"")

    def add(self, ids: Integer[np.ndarray, " tokens"], domain: int, prompt: int = 0) -> None:
        """Adds a document, the first `prompt` ids of which are its prompt, and its end."""
        if self._prompts is not None:
            self._prompts.append(prompt)
        self._pending += [ids, np.array([self._end], self._dtype)]
        self._lengths.append(len(ids) + 1)
        self._domains.append(domain)
        self._gathered += len(ids) + 1
        if self._gathered >= BUFFER:
            self._flush()

    def finish(self) -> str:
        """Writes what is left; returns the SHA-256, in hex, of domains, starts, prompts if there may be any, ids."""
        self._flush()
        digest = hashlib.sha256()
        fields = ("domains", "starts") if self._prompts is None else ("domains", "starts", "prompts")
        for path in (*map(self._path, fields), *shard_paths(self._directory, self._name)):
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()

    def _flush(self) -> None:
        starts = self._last_start + np.cumsum(self._lengths, dtype="<i8")
        self._append("starts", starts.tobytes())
        self._append("domains", np.array(self._domains, "<i4").tobytes())
        if self._prompts is not None:
            self._append("prompts", np.array(self._prompts, "<i8").tobytes())
            self._prompts = []
        self._last_start = int(starts[-1]) if len(starts) else self._last_start
        ids = np.concatenate([np.empty(0, self._dtype), *self._pending], dtype=self._dtype, casting="same_kind")
        while len(ids):
            shard, used = divmod(self._written, SHARD_TOKENS)
            part, ids = ids[: SHARD_TOKENS - used], ids[SHARD_TOKENS - used :]
            self._append(f"tokens.{shard:05}", part.tobytes())
            self._written += len(part)
        self._pending, self._lengths, self._domains, self._gathered = [], [], [], 0

    def _append(self, field: str, data: bytes) -> None:
        with self._path(field).open("ab") as file:
            file.write(data)

    def _path(self, field: str) -> Path:
        return self._directory / f"{self._name}.{field}"


class StoredTokens:
    """The ids of a part, read from its shards; small parts are read into memory at once."""

    def __init__(self, directory: Path, name: str, dtype: type[np.unsignedinteger]):
        """Opens the shards. Raises OSError where they cannot be read."""
        self.dtype = np.dtype(dtype)
        paths = shard_paths(directory, name)
        self._sizes = [path.stat().st_size // self.dtype.itemsize for path in paths]
        self._resident: NDArray[Any] | None = None
        self._files: list[Any] = []
        if sum(self._sizes) * self.dtype.itemsize <= RESIDENT:
            self._resident = np.concatenate([np.fromfile(path, self.dtype.newbyteorder("<")) for path in paths])
        else:
            self._files = [path.open("rb", buffering=0) for path in paths]

    def __len__(self) -> int:
        return sum(self._sizes)

    def __getitem__(self, piece: slice) -> Integer[np.ndarray, " piece"]:
        """The ids start:stop. Raises MachineError where a shard can no longer be read, or has become shorter."""
        if self._resident is not None:
            return self._resident[piece]
        ids = np.empty(piece.stop - piece.start, self.dtype)
        position = piece.start
        while position < piece.stop:
            shard, offset = divmod(position, SHARD_TOKENS)
            count = min(piece.stop - position, SHARD_TOKENS - offset)
            begin = position - piece.start
            self._read(shard, offset, ids[begin : begin + count])
            position += count
        return ids

    def _read(self, shard: int, offset: int, into: NDArray[Any]) -> None:
        size = self.dtype.itemsize
        view, done = memoryview(into).cast("B"), 0
        while done < len(view):
            try:
                got = os.preadv(self._files[shard].fileno(), [view[done:]], offset * size + done)
            except OSError as error:
                reason = error.strerror
            else:
                reason = "" if got else "it has become shorter"
            if reason:
                raise MachineError(f"data.cache_dir: {self._files[shard].name} cannot be read ({reason}): start again")
            done += got


def read_numbers(path: Path, dtype: str) -> NDArray[Any]:
    """The numbers of a file: in memory where they are few, and otherwise mapped, so that they can leave it again."""
    if path.stat().st_size <= RESIDENT:
        return np.fromfile(path, dtype)
    return np.memmap(path, dtype, "r")


def shard_paths(directory: Path, name: str) -> Sequence[Path]:
    """The shards of a part, in order."""
    return sorted(directory.glob(f"{name}.tokens.*"))
