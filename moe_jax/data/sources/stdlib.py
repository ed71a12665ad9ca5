"""The standard library of the running Python: text that every installation has."""

import dataclasses
import sysconfig
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from moe_jax.data.documents import Document, as_utf8
from moe_jax.data.sources.files import Files, read_file

PROSE = frozenset((".txt", ".rst", ".md", ".html"))
TEST_DIRECTORIES = frozenset(("test", "tests", "idle_test"))
NOT_STDLIB = frozenset(("site-packages", "dist-packages", "__pycache__"))


@dataclasses.dataclass(frozen=True)
class StandardLibrary:
    """`stdlib`: the running Python's own modules and texts, in the domains `code`, `tests` and `prose`."""

    spec: str = "stdlib"
    root: Path = Path(sysconfig.get_path("stdlib"))

    def fingerprint(self) -> object:
        """A hash of path, size and times of each file."""
        return self._files().digest()

    def read(self) -> Iterator[Document | None]:
        """Python files and, where they lie outside test directories, texts and HTML as prose."""
        for path, name in self._files().paths():
            if PurePosixPath(name).suffix in PROSE | {".py"}:
                text = as_utf8(read_file(self.spec, path))
                yield Document(text, _domain(PurePosixPath(name)), name) if text is not None else None

    def sha256(self) -> str:
        """It is no archive."""
        return ""

    def _files(self) -> Files:
        return Files(self.spec, str(self.root), follow=False, skip=NOT_STDLIB)


def _domain(name: PurePosixPath) -> str:
    if TEST_DIRECTORIES.intersection(name.parts[:-1]):
        return "tests"
    return "prose" if name.suffix in PROSE or str(name) == "pydoc_data/topics.py" else "code"
