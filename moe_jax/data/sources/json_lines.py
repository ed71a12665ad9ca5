"""Lines of JSON, plain or compressed."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moe_jax.config.rules import ConfigError
from moe_jax.data.documents import Document, domain_name
from moe_jax.data.sources.compression import SUFFIXES, broken, decompressed
from moe_jax.data.sources.files import Files
from moe_jax.data.sources.source import reading


@dataclasses.dataclass(frozen=True)
class JsonLines:
    """`jsonl:FILE_OR_GLOB`: each line holds a document in `text_field`, and what comes before it in `prompt_field`.

    Files in .gz and .zst are decompressed.

    Its domain is the line's field "domain", or the file's stem where there is none.
    """

    spec: str
    pattern: str
    text_field: str
    prompt_field: str = ""

    def fingerprint(self) -> object:
        """The names of the fields, and a hash of path, size and times of each file."""
        prompt = [self.prompt_field] if self.prompt_field else []
        return [self.text_field, *prompt, Files(self.spec, self.pattern).digest()]

    def read(self) -> Iterator[Document | None]:
        """Reads the lines. Blank lines and empty texts are skipped; any other bad line is an error with its number."""
        for path, name in Files(self.spec, self.pattern).paths():
            plain = Path(path).with_suffix("") if Path(path).suffix in SUFFIXES else Path(path)
            for number, line in self._lines(path):
                record = self._parse(f"{path}:{number}", line)
                # JSON can spell lone surrogates, which UTF-8 cannot: they become "?".
                text = record[self.text_field].encode(errors="replace")
                prompt = record[self.prompt_field].encode(errors="replace") if self.prompt_field else b""
                domain = domain_name(str(record.get("domain") or plain.stem))
                yield Document(text, domain, f"{name}:{number}", prompt=prompt) if text else None

    def sha256(self) -> str:
        """It is no archive."""
        return ""

    def _lines(self, path: str) -> Iterator[tuple[int, bytes]]:
        """The lines that are not blank, with their numbers."""
        not_whole = broken(self.spec, path)
        with reading(self.spec, path), open(path, "rb") as raw, decompressed(self.spec, path, raw) as file:
            lines = enumerate(file, start=1)
            while True:
                try:
                    number, line = next(lines, (0, b""))
                except not_whole as error:
                    raise ConfigError(
                        f"data.source={self.spec!r}: {path!r} is not whole ({error}): get it again"
                    ) from None
                if not number:
                    return
                if line.strip():
                    yield number, line

    def _parse(self, where: str, line: bytes) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except RecursionError:
            raise ConfigError(f"data.source={self.spec!r}: {where} is nested too deeply: drop the line") from None
        except ValueError as error:  # JSONDecodeError or UnicodeDecodeError
            raise ConfigError(f"data.source={self.spec!r}: {where} is not JSON ({error}): mend or drop it") from None
        for field, name in (("data.text_field", self.text_field), ("data.prompt_field", self.prompt_field)):
            if name and not (isinstance(record, dict) and isinstance(record.get(name), str)):
                raise ConfigError(
                    f"data.source={self.spec!r}: {where} has no string {name!r}: set {field} to the field that holds "
                    "the text, or drop the line"
                )
        return record
