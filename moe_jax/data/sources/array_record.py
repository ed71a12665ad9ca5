"""ArrayRecord files, read through Grain."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from moe_jax.config.rules import ConfigError
from moe_jax.data.documents import Document, as_utf8, domain_name
from moe_jax.data.sources.files import Files
from moe_jax.data.sources.source import library


@dataclasses.dataclass(frozen=True)
class ArrayRecord:
    """`arrayrecord:FILE_OR_GLOB`: each record is a document, as UTF-8. Its domain is the file's stem."""

    spec: str
    pattern: str

    def fingerprint(self) -> object:
        """A hash of path, size and times of each file."""
        return Files(self.spec, self.pattern).digest()

    def read(self) -> Iterator[Document | None]:
        """Reads the records; those that are empty or not text are skipped."""
        sources = library(self.spec, "grain.sources")
        for path, name in Files(self.spec, self.pattern).paths():
            try:
                records = sources.ArrayRecordDataSource(path)
                length = len(records)
            except Exception as error:  # the reader raises RuntimeError, ValueError and others of its own
                raise self._damaged(path, error) from None
            domain = domain_name(Path(path).stem)
            for i in range(length):
                try:
                    text = as_utf8(records[i])
                except Exception as error:
                    raise self._damaged(path, error) from None
                yield Document(text, domain, f"{name}:{i + 1}") if text is not None else None

    def sha256(self) -> str:
        """It is no archive."""
        return ""

    def _damaged(self, path: str, error: Exception) -> ConfigError:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        return ConfigError(f"data.source={self.spec!r}: {path!r} is no whole ArrayRecord file ({reason}): get it again")
