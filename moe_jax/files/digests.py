"""SHA-256 of every file of a directory, written beside the files and compared when they are read again."""

import concurrent.futures
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

DIGESTS = "digests.json"
THREADS = 8  # hashing releases the interpreter


def write_digests(directory: Path) -> None:
    """Writes DIRECTORY/digests.json, {path below the directory: SHA-256 in hex}, of all files that are there."""
    draft = directory / f".{DIGESTS}"
    draft.write_text(json.dumps(_digests(directory), indent=1))
    os.replace(draft, directory / DIGESTS)


def has_digests(directory: Path) -> bool:
    """Whether `write_digests` was done there."""
    return (directory / DIGESTS).exists()


def damage(directory: Path) -> str | None:
    """What is not as `write_digests` left it, in one phrase; None where all is. Files that came later do not count.

    Raises FileNotFoundError where the directory has no digests.
    """
    try:
        expected = json.loads((directory / DIGESTS).read_text())
        missing = [name for name in expected if not (directory / name).is_file()]
    except (ValueError, TypeError):
        return f"{DIGESTS} cannot be read"
    if not isinstance(expected, dict):
        return f"{DIGESTS} cannot be read"
    if missing:
        return f"{missing[0]} is missing"
    found = _digests(directory)
    changed = [name for name, digest in expected.items() if found[name] != digest]
    return f"{changed[0]} has changed since it was written" if changed else None


def _digests(directory: Path) -> dict[str, str]:
    names = sorted(_files(directory))
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: _sha256(directory / name), names), strict=True))


def _files(directory: Path) -> Iterator[str]:
    for path in directory.rglob("*"):
        if path.is_file() and path.name not in (DIGESTS, f".{DIGESTS}"):
            yield path.relative_to(directory).as_posix()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
