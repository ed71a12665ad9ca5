"""Cache entries appear whole or not at all, so that several processes may build the same one at once."""

import contextlib
import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path


def cache_key(*parts: object) -> str:
    """A name for whatever `parts`, which are JSON values, determine."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


@contextlib.contextmanager
def publish(directory: Path) -> Iterator[Path]:
    """Yields an empty directory to fill, which becomes `directory` at the end.

    If another process finishes first, its directory stays and this one is dropped. After an exception nothing stays.
    Raises ValueError where the cache cannot be written.
    """
    draft = directory.with_name(f".{uuid.uuid4().hex}")
    try:
        draft.mkdir(parents=True)
    except OSError as error:
        raise ValueError(f"data.cache_dir cannot be written ({error}): set it to a directory of yours") from None
    try:
        yield draft
        try:
            draft.rename(directory)
        except OSError:
            if not directory.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
