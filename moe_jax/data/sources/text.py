"""Text files: in folders, by a glob, or in an archive."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from moe_jax.data.documents import Document, as_utf8, domain_name
from moe_jax.data.sources.archives import archive_members, archive_stem
from moe_jax.data.sources.files import Files, read_file


@dataclasses.dataclass(frozen=True)
class TextFiles:
    """`text:FOLDER_OR_GLOB`: every text file that is not hidden. The first directory below the root is its domain.

    A tar or zip archive that is named itself is read like a folder; in a folder it is a file like others, and no text.
    """

    spec: str
    pattern: str

    def fingerprint(self) -> object:
        """A hash of path, size and times of each file."""
        return self._files().digest()

    def read(self) -> Iterator[Document | None]:
        """Reads the files. The domain of a file that lies directly in the root is the root's own name.

        The root of a glob is the directory before the first wildcard.
        """
        root, names = self._files().locate()
        archive = self._archive()
        if archive is not None:
            yield from self._read_archive(archive)
            return
        flat = Path(root).resolve().name
        for name in names:
            text = as_utf8(read_file(self.spec, str(Path(root, name))))
            yield Document(text, _domain(name, flat), name) if text is not None else None

    def sha256(self) -> str:
        """The hash is that of releases alone; a file of one's own has its place in the fingerprint."""
        return ""

    def _files(self) -> Files:
        return Files(self.spec, self.pattern)

    def _archive(self) -> Path | None:
        path = Path(self.pattern).expanduser()
        return path if path.is_file() and archive_stem(path) is not None else None

    def _read_archive(self, path: Path) -> Iterator[Document | None]:
        flat = archive_stem(path) or path.name
        for name, data in archive_members(self.spec, path):
            if not any(part.startswith(".") and part != "." for part in PurePosixPath(name).parts):
                text = as_utf8(data)
                yield Document(text, _domain(name.removeprefix("./"), flat), name) if text is not None else None


def _domain(name: str, flat: str) -> str:
    parts = PurePosixPath(name).parts
    return domain_name(parts[0] if len(parts) > 1 else flat)
