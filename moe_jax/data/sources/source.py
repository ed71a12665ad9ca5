"""What a source of documents is, and what all of them need: errors in one line, libraries that may be missing."""

import contextlib
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from moe_jax.config.rules import ConfigError, MachineError
from moe_jax.config.schema import DataConfig
from moe_jax.data.documents import Document


@runtime_checkable
class Source(Protocol):
    """A place that documents are read from."""

    @property
    def spec(self) -> str:
        """The source as it is written in data.source."""

    def fingerprint(self) -> object:
        """A JSON value that changes whenever `read` would yield something else; it is cheap where it can be."""

    def read(self) -> Iterator[Document | None]:
        """Yields one document after another, always in the same order; None stands for one that is empty or no text.

        At most a few documents are in memory at a time. Raises ConfigError for what is not as the source has to be, and
        MachineError for what cannot be read.
        """

    def sha256(self) -> str:
        """The hash of the archive that the source is, in hex; empty for any other source."""


class SourceKind(NamedTuple):
    """A kind of source, by its prefix in `SOURCES`."""

    argument: str  # what stands behind the prefix and a colon; empty: nothing may
    make: Callable[[str, str, DataConfig], Source]  # the source of (spec, argument, config)
    holds_ids: bool = False  # whether it was tokenized elsewhere


@contextlib.contextmanager
def reading(spec: str, path: str | Path) -> Iterator[None]:
    """Turns an OSError of the block into a MachineError that names the source and the file or folder."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise MachineError(
            f"data.source={spec!r}: {str(path)!r} cannot be read ({reason}): make it readable, or leave it out"
        ) from None


def library(spec: str, module: str) -> Any:
    """The module of an optional package. Raises ConfigError with the way to install it where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise ConfigError(
            f"data.source={spec!r} needs the package {package}: pip install 'moe_jax[data]' (or {package})"
        ) from None
