"""Entries of the cache: built once by one process while others wait, whole or not at all, checked when opened."""

import contextlib
import hashlib
import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from absl import logging

from moe_jax.config import rules
from moe_jax.config.rules import ConfigError, MachineError
from moe_jax.config.schema import DataConfig
from moe_jax.files.digests import DIGESTS, damage, has_digests, write_digests
from moe_jax.files.lock import is_held, locked

Opened = TypeVar("Opened")
QUIET_SECONDS = 3.0  # of waiting for another process, before a line says so


def cache_root(config: DataConfig) -> Path:
    """`data.cache_dir` as a path. Raises ConfigError for what cannot be one."""
    return rules.directory("data.cache_dir", config.cache_dir)


def cache_key(*parts: object) -> str:
    """A name for whatever `parts`, which are JSON values, determine."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def cached(directory: Path, what: str, build: Callable[[Path], None], open_entry: Callable[[Path], Opened]) -> Opened:
    """What `open_entry` makes of the entry, which `build` fills if it is not there.

    An entry that is damaged in any way is removed, with a warning of one line, and built again. Of several processes,
    on one host or on several, one builds and the others wait for it. Raises MachineError where the cache cannot be
    written, and whatever `build` raises.
    """
    opened, _ = _open_whole(directory, open_entry)
    if not opened:
        with building(directory, what):
            opened, reason = _open_whole(directory, open_entry)  # built by the process that this one waited for
            if not opened:
                if reason:
                    logging.warning("%s in %s is damaged (%s): it is built again", what.capitalize(), directory, reason)
                discard(directory)
                with publish(directory) as draft:
                    build(draft)
    return opened[0] if opened else open_entry(directory)


def _open_whole(directory: Path, open_entry: Callable[[Path], Opened]) -> tuple[list[Opened], str]:
    """The opened entry as a list of one, or an empty list and what is damaged, which is empty where it is missing."""
    try:
        if not directory.exists() and not directory.is_symlink():
            return [], ""
        reason = damage_of(directory)
        return ([open_entry(directory)], "") if reason is None else ([], reason)
    except (ConfigError, MachineError):
        raise
    except Exception as error:  # damage has as many forms as there are libraries that read the files
        return [], " ".join(str(error).split()) or type(error).__name__


def damage_of(directory: Path) -> str | None:
    """What is wrong with an entry that `publish` made, in one phrase; None where nothing is."""
    if not directory.is_dir():
        return "it is no folder"
    if not has_digests(directory):
        return f"{DIGESTS} is missing"
    reason = damage(directory)
    if reason is not None:
        return reason
    covered = json.loads((directory / DIGESTS).read_text())
    present = (path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    unknown = [name for name in present if name != DIGESTS and name not in covered]
    return f"{unknown[0]} is not among its digests" if unknown else None


@contextlib.contextmanager
def building(directory: Path, what: str) -> Iterator[None]:
    """Holds the lock beside the entry; a line says so if another process holds it for long.

    Drafts that killed builds have left in the same folder are removed.
    """
    lock = _lock_of(directory.parent, directory.name)
    with contextlib.ExitStack() as stack:
        with _writing(directory):
            directory.parent.mkdir(parents=True, exist_ok=True)
            _take(stack, lock, what)
        for draft in directory.parent.glob(".*.draft"):
            name = draft.name[1:].rpartition(".draft")[0].rpartition(".")[0]
            if name == directory.name or not is_held(_lock_of(directory.parent, name)):
                shutil.rmtree(draft, ignore_errors=True)
        yield


@contextlib.contextmanager
def publish(directory: Path) -> Iterator[Path]:
    """Yields an empty directory to fill, which becomes `directory` at the end, with the digests of its files.

    After an exception nothing stays. Raises MachineError where the cache cannot be written, as on a full disk.
    """
    draft = directory.with_name(f".{directory.name}.{uuid.uuid4().hex}.draft")
    try:
        with _writing(directory):
            draft.mkdir(parents=True)
            yield draft
            write_digests(draft)
            draft.rename(directory)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def discard(path: Path) -> None:
    """Removes an entry, whatever it is, if it is there. Raises MachineError where that fails."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise MachineError(
            f"data.cache_dir: {path} is damaged and cannot be removed ({error.strerror or error}): remove it yourself"
        ) from None


def _take(stack: contextlib.ExitStack, lock: Path, what: str) -> None:
    """Has the stack hold the lock; waits for another holder, after a while with a line that names it."""
    deadline = time.monotonic() + QUIET_SECONDS
    while True:
        try:
            stack.enter_context(locked(lock, wait=False))
            return
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                logging.info("Waiting for %s, which builds %s", str(error) or "another process", what)
                stack.enter_context(locked(lock))
                return
            time.sleep(0.1)


def _lock_of(folder: Path, name: str) -> Path:
    return folder / f".{name}.lock"


@contextlib.contextmanager
def _writing(directory: Path) -> Iterator[None]:
    """Turns an OSError of the block into a MachineError about the cache."""
    try:
        yield
    except OSError as error:
        raise MachineError(
            f"data.cache_dir cannot be written ({directory.parent}: {error.strerror or error}): make room and give "
            "yourself the right to write there, or set it to another directory"
        ) from None
