"""The source archive of a release on PyPI, fetched once with pip into the cache and read without unpacking."""

import dataclasses
import hashlib
import itertools
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from moe_jax.config.rules import ConfigError, MachineError
from moe_jax.data.cache import building, damage_of, publish
from moe_jax.data.sources.archives import archive_members
from moe_jax.files.digests import DIGESTS, has_digests, write_digests

PINNED = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)")


@dataclasses.dataclass(frozen=True)
class SourceArchive:
    """The archive of NAME==VERSION, which lies alone in `directory` in the cache."""

    name: str
    version: str
    directory: Path

    @classmethod
    def of(cls, requirement: str, cache_dir: Path) -> "SourceArchive":
        """Parses `requirement`, a release NAME==VERSION.

        Raises ConfigError for anything else: results are compared, so the text must not change.
        """
        match = PINNED.fullmatch(requirement)
        if match is None:
            raise ConfigError(f"data.source='pypi:{requirement}' names no release: pin one, as in pypi:Django==5.1.4")
        directory = re.sub(r"[-_.]+", "-", match["name"]).lower() + "-" + match["version"]
        return cls(match["name"], match["version"], cache_dir / "archives" / directory)

    @property
    def spec(self) -> str:
        """The source that it is."""
        return f"pypi:{self.name}=={self.version}"

    def path(self) -> Path:
        """The archive's path; fetches the archive if it is not there.

        An archive that has changed since it was fetched, or was none when it was put there, is set aside and fetched
        again. Raises ConfigError, in one line, if that fails.
        """
        reason = self._damage()
        if reason is not None:
            with building(self.directory, "the archive"):
                reason = self._damage()
                if reason is not None:
                    self._set_aside(reason)
                    with publish(self.directory) as draft:
                        download(self.name, self.version, draft, self.directory)
        return self._files()[0]

    def sha256(self) -> str:
        """SHA-256 of the archive's bytes, in hex."""
        with self.path().open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Yields path below the archive's top directory and content of each regular file, in the order of the paths.

        Meanwhile the files are in a temporary file beside the archive.
        """
        path = self.path()
        with tempfile.TemporaryFile(dir=_writable(path.parent)) as spool:
            where: dict[str, tuple[int, int]] = {}
            for name, data in archive_members(self.spec, path):
                below = name.partition("/")[2]
                if below:
                    where[below] = spool.tell(), len(data)
                    spool.write(data)
            for name, (offset, size) in sorted(where.items()):
                spool.seek(offset)
                yield name, spool.read(size)

    def _files(self) -> list[Path]:
        return [path for path in self.directory.iterdir() if not path.name.startswith(".") and path.name != DIGESTS]

    def _damage(self) -> str | None:
        """Why the archive has to be fetched; None where it need not be. An archive put there by hand is read once."""
        if not self.directory.exists():
            return ""
        try:
            if self.directory.is_dir() and not has_digests(self.directory):
                files = self._files()
                if len(files) != 1:
                    return f"{len(files)} files are there instead of one archive"
                for _ in archive_members(self.spec, files[0]):
                    pass
                _note_digests(self.directory)
                return None
            return damage_of(self.directory)
        except (ConfigError, MachineError, OSError, ValueError) as error:
            return str(error)

    def _set_aside(self, reason: str) -> None:
        if not self.directory.exists():
            return
        names = (self.directory.with_name(f"{self.directory.name}.damaged.{n}") for n in itertools.count(1))
        free = next(path for path in names if not path.exists())
        logging.warning(
            "data.source=%r: the archive is damaged (%s): it is fetched again, and now in %s", self.spec, reason, free
        )
        try:
            self.directory.rename(free)
        except OSError as error:
            raise MachineError(f"data.cache_dir: {self.directory} cannot be renamed ({error}): remove it") from None


def _note_digests(directory: Path) -> None:
    try:
        write_digests(directory)
    except OSError:  # a cache that others share and this process only reads
        logging.info("%s cannot be written: the archive there is read once more at every start", directory)


def _writable(directory: Path) -> Path | None:
    """The directory, or None (the system's own for temporary files) where nothing can be written into it."""
    try:
        with tempfile.TemporaryFile(dir=directory):
            return directory
    except OSError:
        return None


def download(name: str, version: str, directory: Path, final: Path) -> None:
    """Has pip put the release's source archive into `directory`.

    pip honours the user's index and proxy settings. It also runs the package's metadata step in a build environment of
    its own, so only this package has to come as source: with `:all:` the build tools would be compiled as well.

    Raises ConfigError, in one line that says how to go on without pip (by hand, into `final`), if pip fails.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"--no-binary={name}"]
    done = subprocess.run([*command, "--dest", str(directory), f"{name}=={version}"], capture_output=True, text=True)
    if done.returncode or not any(directory.iterdir()):
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["pip wrote no archive"]
        reason = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1]).strip()
        raise ConfigError(
            f"data.source='pypi:{name}=={version}': pip could not fetch the source archive ({reason}): check the "
            f"release and the network, or put the archive into {final} yourself"
        )
