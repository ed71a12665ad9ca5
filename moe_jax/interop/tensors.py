"""The tensors of a Hugging Face folder, by name: looked up, checked and sliced, but read only where they are used."""

import json
import math
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from moe_jax.config.rules import ConfigError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
KEPT_BYTES = 1 << 27  # of a file that stay in this process's memory after they were read
DTYPES: Mapping[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "U8": np.uint8,
}


@runtime_checkable
class Tensor(Protocol):
    """A tensor of a folder: it knows its shape, and what is indexed of it is read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def dtype(self) -> str:
        """Its type, as safetensors names it."""

    def read(self, first: int | None = None) -> np.ndarray:
        """All of it, or only the entry `first` of its first dimension."""


class Stored(NamedTuple):
    """A tensor as it lies in a file."""

    file: "_File"
    shape: tuple[int, ...]
    dtype: str
    begin: int  # of its bytes in the file
    end: int

    def read(self, first: int | None = None) -> np.ndarray:
        """See `Tensor.read`."""
        begin, end, shape = self.begin, self.end, self.shape
        if first is not None:
            size = (end - begin) // shape[0]
            begin, end, shape = begin + first * size, begin + (first + 1) * size, shape[1:]
        return self.file.read(begin, end).view(DTYPES[self.dtype]).reshape(shape)


def open_tensors(folder: Path) -> dict[str, Stored]:
    """The tensors of `model.safetensors`, or of the files that its index lists.

    Raises ConfigError, in one line each, for a folder without either, a file that is missing, cut short or damaged, a
    path that leads out of the folder, a tensor that is there twice, or not where the index says, and a type of numbers
    that is not read here. Other formats, pickle among them, are not read.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder: give one with config.json and {SINGLE} or {INDEX}")
    if (folder / INDEX).exists():
        weight_map = _weight_map(folder)
        tensors: dict[str, Stored] = {}
        for name in sorted(set(weight_map.values())):
            for tensor, stored in _open(folder / name).items():
                if tensor in tensors:
                    raise ConfigError(f"{folder}: tensor {tensor} is in two files, {name} and another: remove one")
                tensors[tensor] = stored
        _compare(folder, weight_map, tensors)
        return tensors
    if (folder / SINGLE).exists():
        return _open(folder / SINGLE)
    others = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".pickle"))
    pickled = f" ({others[0]} may hold code and is never read: convert it to safetensors)" if others else ""
    raise ConfigError(f"{folder} has neither {SINGLE} nor {INDEX}{pickled}")


def _weight_map(folder: Path) -> dict[str, str]:
    try:
        weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        if not all(isinstance(name, str) for item in weight_map.items() for name in item):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ConfigError(f"{folder / INDEX} cannot be read: it needs a weight_map of tensors to files") from None
    for name in set(weight_map.values()):
        if Path(name).name != name or name in ("", ".", ".."):
            raise ConfigError(f"{folder / INDEX} names {name!r}, a path out of the folder: put all files into it")
        if not (folder / name).is_file():
            raise ConfigError(f"{folder / INDEX} names {name}, which is missing: download it again")
    return weight_map


def _compare(folder: Path, weight_map: Mapping[str, str], tensors: Mapping[str, Stored]) -> None:
    for name, file in weight_map.items():
        if name not in tensors or tensors[name].file.path.name != file:
            raise ConfigError(f"{folder / INDEX} says that {name} is in {file}, and it is not: download both again")
    unlisted = sorted(set(tensors) - set(weight_map))
    if unlisted:
        raise ConfigError(f"{folder / INDEX} does not list {unlisted[0]}, which is in a file: download it again")


def _open(path: Path) -> dict[str, Stored]:
    """The tensors of one file, whose header safetensors has found to be whole and consistent."""
    try:
        with safe_open(path, framework="numpy") as checked:
            names = list(checked.keys())
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
    except (SafetensorError, OSError, ValueError) as error:
        raise ConfigError(f"{path} is no whole safetensors file ({error}): download it again") from None
    opened = _File(path)
    tensors = {}
    for name in names:
        dtype, shape = header[name]["dtype"], tuple(header[name]["shape"])
        begin, end = (8 + size + offset for offset in header[name]["data_offsets"])
        if dtype not in DTYPES:
            raise ConfigError(f"{path}: {name} has type {dtype}, which is not read here: convert it to BF16 or F32")
        assert end - begin == math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize, "safetensors has checked this"
        tensors[name] = Stored(opened, shape, dtype, begin, end)
    return tensors


class _File:
    """A file that is mapped into memory while it is read from; what was read is handed back to the system."""

    def __init__(self, path: Path):
        self.path = path
        self._map: mmap.mmap | None = None
        self._kept = 0  # bytes that were read since pages were last handed back

    def read(self, begin: int, end: int) -> np.ndarray:
        """The bytes from `begin` to `end`, as a view whose pages may have to be fetched again after the next `read`."""
        if self._map is None:
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if self._kept > KEPT_BYTES:
            self._map.madvise(mmap.MADV_DONTNEED)  # the map is read-only, so that nothing can be lost
            self._kept = 0
        self._kept += end - begin
        return np.frombuffer(self._map, np.uint8, end - begin, begin)
