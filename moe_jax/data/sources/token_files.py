"""Files of token ids that were made elsewhere: NumPy arrays, or raw numbers."""

import dataclasses
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_jax.config.rules import ConfigError
from moe_jax.data.documents import Document, domain_name
from moe_jax.data.sources.files import Files
from moe_jax.data.sources.ids import documents_of
from moe_jax.data.sources.source import reading
from moe_jax.data.tokenizers.tokenizer import Tokenizer

BLOCK = 1 << 20  # ids that are read at a time


@dataclasses.dataclass(frozen=True)
class TokenFiles:
    """`tokens:FILE_OR_GLOB`: .npy files of integers, or else raw numbers of `dtype`, little-endian.

    The end of document of the tokenizer separates documents. Their domain is the file's stem.
    """

    spec: str
    pattern: str
    dtype: str
    tokenizer: Tokenizer

    def fingerprint(self) -> object:
        """The type of raw numbers, and a hash of path, size and times of each file."""
        return [self.dtype, Files(self.spec, self.pattern).digest()]

    def read(self) -> Iterator[Document | None]:
        """Reads the files, a million ids at a time."""
        for path, name in Files(self.spec, self.pattern).paths():
            domain = domain_name(Path(path).stem)
            yield from documents_of(self.spec, path, name, domain, self._blocks(path), self.tokenizer)

    def sha256(self) -> str:
        """It is no archive."""
        return ""

    def _blocks(self, path: str) -> Iterator[NDArray[Any]]:
        with reading(self.spec, path), open(path, "rb") as file:
            if path.endswith(".npy"):
                dtype, wanted = self._npy_header(path, file)
            else:
                dtype, wanted = np.dtype(self.dtype).newbyteorder("<"), None
            size = os.fstat(file.fileno()).st_size - file.tell()
            if wanted is not None and size != wanted * dtype.itemsize:
                raise ConfigError(
                    f"data.source={self.spec!r}: {path!r} holds {size} bytes of numbers, and its header says "
                    f"{wanted * dtype.itemsize}: get it again"
                )
            if size % dtype.itemsize:
                raise ConfigError(
                    f"data.source={self.spec!r}: {size} bytes of {path!r} are no whole number of {dtype.name}: set "
                    "data.ids_dtype to what was written"
                )
            while len(block := np.fromfile(file, dtype, BLOCK)):
                yield block

    def _npy_header(self, path: str, file: Any) -> tuple[np.dtype[Any], int]:
        """Type and number of the numbers of a NumPy file, which is read up to the first of them."""
        try:
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = header(file)
        except ValueError as error:
            raise ConfigError(
                f"data.source={self.spec!r}: {path!r} is no NumPy file ({error}): write it by numpy.save"
            ) from None
        if dtype.kind not in "iu" or (fortran and len(shape) > 1):
            raise ConfigError(
                f"data.source={self.spec!r}: {path!r} holds {dtype} in the shape {shape}: save integers, row by row"
            )
        return dtype, math.prod(shape)
