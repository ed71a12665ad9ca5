"""The files that a folder, a file or a glob stands for, one after another in the order of their names."""

import dataclasses
import glob
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from moe_jax.config.rules import ConfigError
from moe_jax.data.sources.source import reading


@dataclasses.dataclass(frozen=True)
class Files:
    """The files of `pattern`, which `spec` names; hidden files and folders are left out.

    Linked folders are followed, but for links to a folder that they lie in. Of a folder, one level at a time is in
    memory; of a glob, the names of all matches.
    """

    spec: str
    pattern: str
    follow: bool = True  # whether linked folders are read
    skip: frozenset[str] = frozenset()  # names of folders that are left out

    def locate(self) -> tuple[str, Iterator[str]]:
        """The folder that names are relative to, and the names, sorted.

        Links that lead nowhere are among the names. Raises ConfigError where nothing has this name.
        """
        path = _expand(self.spec, self.pattern)
        mode = self._mode(path)
        if stat.S_ISDIR(mode):
            return path, self._walk(path)
        if stat.S_ISREG(mode):
            return os.path.dirname(path) or ".", iter([os.path.basename(path)])
        if not glob.has_magic(path):
            raise ConfigError(f"data.source={self.spec!r} does not exist: check the path (from {os.getcwd()!r})")
        return self._matches(path)

    def paths(self) -> Iterator[tuple[str, str]]:
        """(path, name relative to the root) of each file."""
        root, names = self.locate()
        return ((os.path.join(root, name), name) for name in names)

    def digest(self) -> str:
        """A hash of path, size and times of each file.

        Change times are among them because a tool can set a modification time back, as reproducible builds do.
        """
        hashed = hashlib.sha256()
        for path, _ in self.paths():
            with reading(self.spec, path):
                status = os.stat(path) if os.path.exists(path) else os.lstat(path)
            facts = (os.path.abspath(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            hashed.update(repr(facts).encode())
        return hashed.hexdigest()

    def _mode(self, path: str) -> int:
        """The mode bits of what has this name; 0 where there is nothing."""
        try:
            return os.stat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return 0
        except PermissionError:
            with reading(self.spec, path):
                raise
        except (OSError, ValueError) as error:
            if glob.has_magic(path) and isinstance(error, OSError):  # a glob may be longer than any name
                return 0
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(f"data.source={self.spec!r} cannot be a path ({reason}): check it") from None

    def _matches(self, path: str) -> tuple[str, Iterator[str]]:
        root = str(next(parent for parent in Path(path).parents if not glob.has_magic(str(parent))))
        found: set[str] = set()
        for match in glob.iglob(path, recursive=True):
            below = Path(match).relative_to(root).as_posix()
            if os.path.isdir(match):
                found.update(Path(below, name).as_posix() for name in self._walk(match))
            elif os.path.isfile(match):
                found.add(below)
        if not found:
            raise ConfigError(f"data.source={self.spec!r} matches no file: check the glob (from {os.getcwd()!r})")
        return root, iter(sorted(found))

    def _walk(self, root: str) -> Iterator[str]:
        """The files below `root`, in the order of their relative paths as strings."""
        ancestors = [os.path.realpath(root)]
        levels = [iter(self._level(root, ""))]
        while levels:
            name = next(levels[-1], None)
            if name is None:
                levels.pop()
                ancestors.pop()
            elif not name.endswith("/"):
                yield name
            elif (real := os.path.realpath(os.path.join(root, name))) not in ancestors:
                ancestors.append(real)
                levels.append(iter(self._level(root, name)))

    def _level(self, root: str, folder: str) -> list[str]:
        """What lies directly in a folder below `root`, sorted; names of folders end with a slash, as in the paths."""
        path = os.path.join(root, folder)
        found = []
        with reading(self.spec, path), os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    if entry.name not in self.skip and (self.follow or not entry.is_symlink()):
                        found.append(f"{folder}{entry.name}/")
                elif entry.is_symlink() or entry.is_file():
                    found.append(folder + entry.name)
        return sorted(found)


def read_file(spec: str, path: str) -> bytes:
    """The content of a file; that of a link that leads nowhere is empty."""
    with reading(spec, path):
        if os.path.islink(path) and not os.path.isfile(path):
            return b""
        return Path(path).read_bytes()


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _expand(spec: str, pattern: str) -> str:
    """The path with ~ replaced and without a slash at its end."""
    try:
        return str(Path(pattern).expanduser())
    except RuntimeError as error:  # nobody's home
        raise ConfigError(f"data.source={spec!r} cannot be a path ({error}): check it") from None
