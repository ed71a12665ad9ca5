"""Compressed files as streams of bytes, which end in an error where the file was cut."""

import gzip
import io
import zlib
from typing import Any

from moe_jax.data.sources.source import library

BLOCK = 1 << 15  # compressed bytes that are read at a time
SUFFIXES = frozenset((".gz", ".zst"))


class ZstandardReader(io.RawIOBase):
    """The decompressed frames of a file. Raises EOFError where the last one is not whole."""

    def __init__(self, zstandard: Any, file: io.BufferedIOBase):
        """Takes the module `zstandard` and an open file, which stays open."""
        self._decompressor, self._file = zstandard.ZstdDecompressor(), file
        self._frame: Any = None
        self._left, self._output = b"", memoryview(b"")

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills the start of the buffer; returns how many bytes that were, 0 at the end."""
        while not self._output:
            data = self._left or self._file.read(BLOCK)
            if not data:
                if self._frame is not None:
                    raise EOFError("it ends within a frame")
                return 0
            self._frame = self._frame or self._decompressor.decompressobj()
            self._output, self._left = memoryview(self._frame.decompress(data)), b""
            if self._frame.eof:
                self._left, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._output))
        buffer[:count], self._output = self._output[:count], self._output[count:]
        return count


def decompressed(spec: str, path: str, file: io.BufferedIOBase) -> io.BufferedIOBase:
    """The content of a file that is compressed if its suffix says so. Raises ConfigError without the library."""
    if path.endswith(".gz"):
        return gzip.GzipFile(fileobj=file)
    if path.endswith(".zst"):
        return io.BufferedReader(ZstandardReader(library(spec, "zstandard"), file), 1 << 20)
    return file


def broken(spec: str, path: str) -> tuple[type[Exception], ...]:
    """The exceptions that say that what is read from `decompressed` is not whole."""
    zstandard = (library(spec, "zstandard").ZstdError,) if path.endswith(".zst") else ()
    return (EOFError, zlib.error, gzip.BadGzipFile, *zstandard)
