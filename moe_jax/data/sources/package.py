"""The source archive of a release on PyPI."""

import dataclasses
from collections.abc import Iterator
from pathlib import PurePosixPath

from moe_jax.config.schema import DataConfig
from moe_jax.data.cache import cache_root
from moe_jax.data.documents import Document, as_utf8
from moe_jax.data.sources.release import SourceArchive
from moe_jax.data.sources.stdlib import PROSE


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

    def read(self) -> Iterator[Document | None]:
        """Reads the files, which are named by their path below the archive's top directory, in the order of names."""
        for name, data in self.archive.files():
            text = as_utf8(data)
            yield Document(text, _domain(PurePosixPath(name)), name) if text is not None else None

    def sha256(self) -> str:
        """The hash of the archive."""
        return self.archive.sha256()


def package(spec: str, argument: str, config: DataConfig) -> PythonPackage:
    """The source of a release. Raises ConfigError where `argument` names none."""
    return PythonPackage(spec, SourceArchive.of(argument, cache_root(config)))


def _domain(name: PurePosixPath) -> str:
    if "tests" in name.parts[:-1]:
        return "tests"
    if name.suffix == ".po":
        return "translations"
    if name.parts[0] in ("doc", "docs") and name.suffix in PROSE:
        return "english"
    return "code" if name.suffix == ".py" else "other"
