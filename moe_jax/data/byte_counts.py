"""What the baselines need to know about the text, counted while a corpus is built."""

import dataclasses
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int64

GZIP_WINDOW = 31  # zlib's code for its largest window with a gzip header
BLOCK = 1 << 20  # bytes that are counted or compressed at a time


@dataclasses.dataclass(frozen=True, eq=False)
class ByteCounts:
    """How often each byte occurs, and how small the held-out text gets."""

    train: Int64[np.ndarray, "256"]
    heldout: Int64[np.ndarray, "domains 256"]
    heldout_gzip: Int64[np.ndarray, " domains"]  # bytes of each domain's held-out text after gzip -9
    heldout_gzip_all: int  # bytes of all held-out text after gzip -9, the domains one after another


class ByteCounter:
    """Counts texts as they come; the held-out ones wait in files, since gzip takes them domain by domain."""

    def __init__(self, directory: Path, domains: int):
        """Starts at nothing; the files are in `directory`."""
        self._paths = [directory / f"heldout_{domain}" for domain in range(domains)]
        self._train = np.zeros(256, np.int64)
        self._heldout = np.zeros((domains, 256), np.int64)
        for path in self._paths:
            path.write_bytes(b"")

    def add_train(self, text: bytes) -> None:
        """Counts a training document."""
        self._train += _histogram(text)

    def add_heldout(self, text: bytes, domain: int) -> None:
        """Counts a held-out document."""
        self._heldout[domain] += _histogram(text)
        with self._paths[domain].open("ab") as file:
            file.write(text)

    def finish(self) -> ByteCounts:
        """The counts; compresses the held-out texts."""
        sizes = [_gzip_size(_blocks([path])) for path in self._paths]
        everything = _gzip_size(_blocks(self._paths))
        return ByteCounts(self._train, self._heldout, np.array(sizes, np.int64), everything)


def _histogram(text: bytes) -> Int64[np.ndarray, "256"]:
    counts = np.zeros(256, np.int64)
    for start in range(0, len(text), BLOCK):
        counts += np.bincount(np.frombuffer(text[start : start + BLOCK], np.uint8), minlength=256)
    return counts


def _blocks(paths: Iterable[Path]) -> Iterator[bytes]:
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                yield block


def _gzip_size(blocks: Iterable[bytes]) -> int:
    """Bytes of the text after gzip -9."""
    compressor = zlib.compressobj(level=9, wbits=GZIP_WINDOW)
    return sum(len(compressor.compress(block)) for block in blocks) + len(compressor.flush())
