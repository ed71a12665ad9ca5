"""Parquet, the usual form of published corpora, read through pyarrow."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moe_jax.config.rules import ConfigError
from moe_jax.data.documents import Document, domain_name
from moe_jax.data.sources.files import Files
from moe_jax.data.sources.source import library, reading

ROWS = 256  # that are decoded at a time
TEXT_TYPES = frozenset(("string", "large_string", "string_view"))


@dataclasses.dataclass(frozen=True)
class Parquet:
    """`parquet:FILE_OR_GLOB`: each row holds a document in the column `text_field`, its prompt in `prompt_field`.

    Its domain is the row's column "domain", or the file's stem where there is none. Rows without text are skipped.
    """

    spec: str
    pattern: str
    text_field: str
    prompt_field: str = ""

    def fingerprint(self) -> object:
        """The names of the columns, and a hash of path, size and times of each file."""
        prompt = [self.prompt_field] if self.prompt_field else []
        return [self.text_field, *prompt, Files(self.spec, self.pattern).digest()]

    def read(self) -> Iterator[Document | None]:
        """Reads the rows, a few hundred at a time."""
        for path, name in Files(self.spec, self.pattern).paths():
            stem, number = domain_name(Path(path).stem), 0
            for rows in self._rows(path):
                for row in rows:
                    number += 1
                    text = (row[self.text_field] or "").encode(errors="replace")
                    prompt = ((row[self.prompt_field] if self.prompt_field else "") or "").encode(errors="replace")
                    domain = domain_name(str(row.get("domain") or stem))
                    yield Document(text, domain, f"{name}:{number}", prompt=prompt) if text else None

    def sha256(self) -> str:
        """It is no archive."""
        return ""

    def _rows(self, path: str) -> Iterator[list[dict[str, Any]]]:
        """The rows of a file, some hundred at a time."""
        arrow = library(self.spec, "pyarrow")
        batches = self._batches(path)
        while True:
            try:
                with reading(self.spec, path):
                    batch = next(batches, None)
                    rows = batch.to_pylist() if batch is not None else None
            except (arrow.ArrowException, UnicodeDecodeError) as error:
                reason = str(error).strip().partition("\n")[0]
                raise ConfigError(
                    f"data.source={self.spec!r}: {path!r} is no whole Parquet file ({reason}): get it again"
                ) from None
            if rows is None:
                return
            yield rows

    def _batches(self, path: str) -> Iterator[Any]:
        parquet = library(self.spec, "pyarrow.parquet")
        with parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            types = {field.name: str(field.type) for field in file.schema_arrow}
            fields = {"data.text_field": self.text_field, "data.prompt_field": self.prompt_field}
            for field, column in fields.items():
                if column and not _is_text(types.get(column, "")):
                    kind = f", but one of type {types[column]}" if column in types else ""
                    texts = ", ".join(name for name in types if _is_text(types[name]))
                    raise ConfigError(
                        f"data.source={self.spec!r}: {path!r} has no column {column!r} of text{kind}: "
                        + (f"set {field} to one of {texts}" if texts else "it has none at all, name another file")
                    )
            wanted = [name for name in fields.values() if name] + (["domain"] if "domain" in types else [])
            yield from file.iter_batches(batch_size=ROWS, columns=wanted, use_threads=False)


def _is_text(kind: str) -> bool:
    """Whether a column of that Arrow type holds strings, in a dictionary or not."""
    return kind in TEXT_TYPES or kind.startswith(tuple(f"dictionary<values={text}," for text in TEXT_TYPES))
