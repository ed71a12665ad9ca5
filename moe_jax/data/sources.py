"""Where documents come from: `data.source` is one or several `PREFIX:ARGUMENT`, joined by commas.

A new source is one class with `spec`, `fingerprint` and `read`, and one entry in `SOURCES`.
"""

import dataclasses
import glob
import json
import os
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol, runtime_checkable

from moe_jax.config.rules import ConfigError
from moe_jax.config.schema import DataConfig
from moe_jax.data.archive import SourceArchive
from moe_jax.data.documents import Document, as_utf8

PROSE = frozenset((".txt", ".rst", ".md", ".html"))
TEST_DIRECTORIES = frozenset(("test", "tests", "idle_test"))
NOT_STDLIB = frozenset(("site-packages", "dist-packages", "__pycache__"))


class Reading(NamedTuple):
    """What a source holds, in the order of its documents' names."""

    documents: list[Document]
    skipped: int  # files (jsonl: lines) that are empty or not text
    sha256: str = ""  # hash of the archive, where the source is one


@runtime_checkable
class Source(Protocol):
    """A place that documents are read from."""

    @property
    def spec(self) -> str:
        """The source as it is written in data.source."""

    def fingerprint(self) -> object:
        """A JSON value that changes whenever `read` would return something else; it is cheap where it can be."""

    def read(self) -> Reading:
        """All documents. Raises ValueError where there is none."""


@dataclasses.dataclass(frozen=True)
class StandardLibrary:
    """`stdlib`: the running Python's own modules and texts, in the domains `code`, `tests` and `prose`."""

    spec: str = "stdlib"
    root: Path = Path(sysconfig.get_path("stdlib"))

    def fingerprint(self) -> object:
        """Path, size and times of each file."""
        return _stat(self._files())

    def read(self) -> Reading:
        """Python files and, where they lie outside test directories, texts and HTML as prose."""
        return _read_files(self.spec, self.root, self._files(), _stdlib_domain)

    def _files(self) -> list[Path]:
        wanted = PROSE | {".py"}
        return [path for path in _walk(self.root, NOT_STDLIB) if path.suffix in wanted]


def _stdlib_domain(name: PurePosixPath) -> str:
    if TEST_DIRECTORIES.intersection(name.parts[:-1]):
        return "tests"
    return "prose" if name.suffix in PROSE or str(name) == "pydoc_data/topics.py" else "code"


@dataclasses.dataclass(frozen=True)
class TextFiles:
    """`text:FOLDER_OR_GLOB`: every text file that is not hidden. The first directory below the root is its domain."""

    spec: str
    pattern: str

    def fingerprint(self) -> object:
        """Path, size and times of each file."""
        return _stat(_list_files(self.spec, self.pattern)[1])

    def read(self) -> Reading:
        """Reads the files. The domain of a file that lies directly in the root is the root's own name.

        The root of a glob is the directory before the first wildcard.
        """
        root, files = _list_files(self.spec, self.pattern)
        flat = root.resolve().name
        return _read_files(self.spec, root, files, lambda name: name.parts[0] if len(name.parts) > 1 else flat)


@dataclasses.dataclass(frozen=True)
class JsonLines:
    """`jsonl:FILE_OR_GLOB`: each line holds a document in `text_field`.

    Its domain is the line's field "domain", or the file's stem where there is none.
    """

    spec: str
    pattern: str
    text_field: str

    def fingerprint(self) -> object:
        """The name of the text field, and path, size and times of each file."""
        return [self.text_field, _stat(_list_files(self.spec, self.pattern)[1])]

    def read(self) -> Reading:
        """Reads the lines. Blank lines and empty texts are skipped; any other bad line is an error with its number."""
        root, files = _list_files(self.spec, self.pattern)
        documents: list[Document] = []
        skipped = 0
        for path in files:
            for number, line in _numbered_lines(path):
                record = self._parse(f"{path}:{number}", line)
                # JSON can spell lone surrogates, which UTF-8 cannot: they become "?".
                text = record[self.text_field].encode(errors="replace")
                skipped += not text
                if text:
                    name = f"{path.relative_to(root).as_posix()}:{number}"
                    documents.append(Document(text, str(record.get("domain") or path.stem), name))
        if not documents:
            raise ValueError(f"data.source={self.spec!r} holds no document: check the path and data.text_field")
        return Reading(documents, skipped)

    def _parse(self, where: str, line: bytes) -> dict[str, str]:
        try:
            record = json.loads(line)
        except ValueError as error:  # JSONDecodeError or UnicodeDecodeError
            raise ValueError(f"data.source={self.spec!r}: {where} is not JSON ({error}): mend or drop it") from None
        if not isinstance(record, dict) or not isinstance(record.get(self.text_field), str):
            raise ValueError(
                f"data.source={self.spec!r}: {where} has no string {self.text_field!r}: set data.text_field to the "
                "field that holds the text, or drop the line"
            )
        return record


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line


@dataclasses.dataclass(frozen=True)
class PythonPackage:
    """`pypi:NAME==VERSION`: the source archive of a pinned release.

    Its domains are `tests` (below a directory of that name), `translations` (.po), `english` (texts below docs), `code`
    (.py) and `other`.
    """

    spec: str
    archive: SourceArchive

    def fingerprint(self) -> object:
        """The archive's hash; fetches the archive where it is not cached yet."""
        return self.archive.sha256()

    def read(self) -> Reading:
        """Reads the files, which are named by their path below the archive's top directory."""
        texts = {name: as_utf8(data) for name, data in self.archive.files()}
        reading = _as_documents(self.spec, sorted(texts.items()), _package_domain)
        return reading._replace(sha256=self.archive.sha256())


def _package_domain(name: PurePosixPath) -> str:
    if "tests" in name.parts[:-1]:
        return "tests"
    if name.suffix == ".po":
        return "translations"
    if name.parts[0] in ("doc", "docs") and name.suffix in PROSE:
        return "english"
    return "code" if name.suffix == ".py" else "other"


def _package(spec: str, argument: str, config: DataConfig) -> PythonPackage:
    return PythonPackage(spec, SourceArchive.of(argument, Path(config.cache_dir).expanduser()))


class SourceKind(NamedTuple):
    """A kind of source, by its prefix in `SOURCES`."""

    argument: str  # what stands behind the prefix and a colon; empty: nothing may
    make: Callable[[str, str, DataConfig], Source]  # the source of (spec, argument, config)


SOURCES = {
    "stdlib": SourceKind("", lambda spec, argument, config: StandardLibrary()),
    "text": SourceKind("FOLDER_OR_GLOB", lambda spec, argument, config: TextFiles(spec, argument)),
    "jsonl": SourceKind("FILE_OR_GLOB", lambda spec, argument, config: JsonLines(spec, argument, config.text_field)),
    "pypi": SourceKind("NAME==VERSION", _package),
}


def parse_sources(config: DataConfig) -> list[Source]:
    """The sources that `config.source` names; nothing is read yet.

    Raises ConfigError for a source that is unknown or incomplete, and where `config.weights` do not fit the sources.
    """
    sources = [_parse_source(spec.strip(), config) for spec in config.source.split(",")]
    if config.weights and len(config.weights) != len(sources):
        raise ConfigError(
            f"data.weights={config.weights} has {len(config.weights)} entries for {len(sources)} sources: give one "
            "each, or () to mix by size"
        )
    if any(not weight > 0 for weight in config.weights):
        raise ConfigError(f"data.weights={config.weights} has an entry that is not positive: leave that source out")
    return sources


def _parse_source(spec: str, config: DataConfig) -> Source:
    prefix, _, argument = spec.partition(":")
    if prefix not in SOURCES or bool(argument) != bool(SOURCES[prefix].argument):
        *first, last = (f"{name}:{kind.argument}" if kind.argument else name for name, kind in SOURCES.items())
        raise ConfigError(
            f"data.source={spec!r} is not a source: use {', '.join(first)} or {last}, several joined by commas"
        )
    return SOURCES[prefix].make(spec, argument, config)


def _walk(root: Path, skip: frozenset[str] = frozenset()) -> list[Path]:
    """The files below `root` that are neither hidden nor in a directory of `skip`, sorted by relative path."""
    found = []
    for directory, directories, files in os.walk(root):
        directories[:] = [name for name in directories if not name.startswith(".") and name not in skip]
        found += [Path(directory, name) for name in files if not name.startswith(".")]
    return _sorted_below(root, found)


def _sorted_below(root: Path, files: Iterable[Path]) -> list[Path]:
    return sorted(filter(Path.is_file, files), key=lambda path: path.relative_to(root).as_posix())


def _list_files(spec: str, pattern: str) -> tuple[Path, list[Path]]:
    """The root that names are relative to, and the sorted files that a directory, a file or a glob stands for."""
    path = Path(pattern).expanduser()
    if path.is_dir():
        return path, _walk(path)
    if path.is_file():
        return path.parent, [path]
    if not glob.has_magic(pattern):
        raise ValueError(f"data.source={spec!r} does not exist: check the path (from {os.getcwd()!r})")
    root = next(parent for parent in path.parents if not glob.has_magic(str(parent)))
    matches = map(Path, glob.glob(str(path), recursive=True))
    files = {file for match in matches for file in (_walk(match) if match.is_dir() else [match])}
    if not files:
        raise ValueError(f"data.source={spec!r} matches no file: check the glob (from {os.getcwd()!r})")
    return root, _sorted_below(root, files)


def _stat(files: Iterable[Path]) -> list[tuple[str, int, int, int]]:
    """Path, size and times of each file.

    Change times are among them because a tool can set a modification time back, as reproducible builds do.
    """
    stats = ((str(path.absolute()), path.stat()) for path in files)
    return [(name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in stats]


def _read_files(spec: str, root: Path, files: list[Path], domain: Callable[[PurePosixPath], str]) -> Reading:
    texts = ((path.relative_to(root).as_posix(), as_utf8(path.read_bytes())) for path in files)
    return _as_documents(spec, texts, domain)


def _as_documents(
    spec: str, texts: Iterable[tuple[str, bytes | None]], domain: Callable[[PurePosixPath], str]
) -> Reading:
    documents: list[Document] = []
    skipped = 0
    for name, text in texts:
        if text is None:
            skipped += 1
        else:
            documents.append(Document(text, domain(PurePosixPath(name)), name))
    if not documents:
        raise ValueError(f"data.source={spec!r} holds no text ({skipped} files are empty or binary): check the path")
    return Reading(documents, skipped)
