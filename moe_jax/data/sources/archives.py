"""The regular files of a tar or zip archive, read one after another without unpacking it."""

import contextlib
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from moe_jax.config.rules import ConfigError
from moe_jax.data.sources.compression import broken, decompressed
from moe_jax.data.sources.source import reading

ZIP = (".zip",)
TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError)


def archive_stem(path: Path) -> str | None:
    """The file's name without the suffix of an archive; None for a file that is none by its name."""
    suffix = max((suffix for suffix in (*ZIP, *TAR) if path.name.lower().endswith(suffix)), key=len, default=None)
    return path.name[: -len(suffix)] if suffix else None


def archive_members(spec: str, path: Path) -> Iterator[tuple[str, bytes]]:
    """Yields name and content of each regular file, in the order of the archive.

    Raises ConfigError where the file is neither a tar nor a zip archive, or damaged.
    """
    damaged: tuple[type[Exception], ...] = (*BROKEN, *broken(spec, str(path).lower()))
    with reading(spec, path):
        members = _zip_members(path) if zipfile.is_zipfile(path) else _tar_members(spec, path)
        while True:
            try:
                member = next(members, None)
            except damaged as error:
                raise ConfigError(
                    f"data.source={spec!r}: {str(path)!r} is no whole tar or zip archive ({error}): get it again"
                ) from None
            if member is None:
                return
            yield member


def _zip_members(path: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                yield info.filename, archive.read(info)


def _tar_members(spec: str, path: Path) -> Iterator[tuple[str, bytes]]:
    with contextlib.ExitStack() as stack:
        if path.name.lower().endswith(".zst"):
            stream = decompressed(spec, str(path), stack.enter_context(path.open("rb")))
            archive = stack.enter_context(tarfile.open(fileobj=stream, mode="r|"))
        else:
            archive = stack.enter_context(tarfile.open(path, mode="r|*"))
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            if file is not None:
                yield member.name, file.read()
