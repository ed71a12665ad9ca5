"""Cache entries appear whole or not at all, so that several processes may build the same one at once."""

import contextlib
import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path


def cache_key(*parts: object) -> str:
    """A name for what is determined by `parts`, which are JSON values."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


@contextlib.contextmanager
def publish(folder: Path) -> Iterator[Path]:
    """Yields an empty folder to fill, which becomes `folder` at the end.

    Where another process was first, its folder stays and this one is dropped. After an exception nothing stays. Raises
    ValueError where the cache cannot be written.
    """
    draft = folder.with_name(f".{uuid.uuid4().hex}")
    try:
        draft.mkdir(parents=True)
    except OSError as error:
        raise ValueError(f"data.cache_dir cannot be written ({error}): set it to a folder of yours") from None
    try:
        yield draft
        try:
            draft.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
