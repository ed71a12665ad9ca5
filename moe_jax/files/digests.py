"""SHA-256 of every file of a directory, written beside the files and compared when they are read again."""

import concurrent.futures
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

DIGESTS = "digests.json"
THREADS = 8  # hashing releases the interpreter


def write_digests(directory: Path, below: Sequence[str] = (".",)) -> None:
    """Writes DIRECTORY/digests.json, {path below the directory: SHA-256 in hex}, of all files in its parts `below`."""
    draft = directory / f".{DIGESTS}"
    names = [path.relative_to(directory).as_posix() for part in below for path in (directory / part).rglob("*")]
    content = [name for name in sorted(names) if name not in (DIGESTS, draft.name) and (directory / name).is_file()]
    draft.write_text(json.dumps(_digests(directory, content), indent=1))
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
    found = _digests(directory, list(expected))
    changed = [name for name, digest in expected.items() if found[name] != digest]
    return f"{changed[0]} has changed since it was written" if changed else None


def _digests(directory: Path, names: Sequence[str]) -> dict[str, str]:
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: _sha256(directory / name), names), strict=True))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
