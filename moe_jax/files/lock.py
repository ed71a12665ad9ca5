"""Locks that other processes see, and that end with their holder, however it dies.

The system's own locks (flock) are used where the file system has them. Some do not (Lustre without the option flock,
many FUSE and network mounts): there a holder leaves a lease, a small file that it touches every few seconds.
"""

import contextlib
import errno
import fcntl
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

NOT_SUPPORTED = frozenset((errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP))
BEAT_SECONDS = 5.0  # between two touches of a lease
STALE_SECONDS = 60.0  # a lease that was not touched for so long belongs to a dead process
ATTEMPTS = 5  # to take a lease without waiting: two processes that ask at the same moment both step back


@contextlib.contextmanager
def locked(path: Path, shared: bool = False, wait: bool = True) -> Iterator[None]:
    """Holds the lock file `path`; any number of processes may hold it `shared`, one only otherwise.

    Where another process holds it: waits, or with `wait` false raises BlockingIOError with the holder as its text.
    """
    with path.open("a+") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            raise BlockingIOError(file.read().strip()) from None
        except OSError as error:
            if error.errno not in NOT_SUPPORTED:
                raise
        else:
            file.truncate(0)
            if not shared:
                file.write(_holder())
                file.flush()
            yield
            return
    with _leased(path, shared, wait):
        yield


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock file."""
    if not path.exists():
        return False
    try:
        with locked(path, wait=False):
            return False
    except BlockingIOError:
        return True


def _holder() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


@contextlib.contextmanager
def _leased(path: Path, shared: bool, wait: bool) -> Iterator[None]:
    """`locked` by a lease PATH.{shared,exclusive}.ID beside the lock file."""
    own = path.with_name(f"{path.name}.{'shared' if shared else 'exclusive'}.{uuid.uuid4().hex}")
    attempt = 0
    while True:
        # First the own lease, then a look around: of two processes, at least one sees the other.
        own.write_text(f"{_holder()}\n{_process_space()}\n{os.getpid()}")
        other = _conflicting(path, own, shared)
        if other is None:
            break
        own.unlink()
        attempt += 1
        if not wait and attempt == ATTEMPTS:
            raise BlockingIOError(other)
        time.sleep(random.uniform(0.01, 0.05) if not wait else random.uniform(0.1, 0.5))
    ended = threading.Event()
    heart = threading.Thread(target=_beat, args=(own, ended), daemon=True)
    heart.start()
    try:
        yield
    finally:
        ended.set()
        heart.join()
        own.unlink(missing_ok=True)


def _beat(lease: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):  # a moment without the file system is no reason to give up
            os.utime(lease)


def _conflicting(path: Path, own: Path, shared: bool) -> str | None:
    """Who holds a lease that excludes `own`, or None. Leases of the dead are removed."""
    now = own.stat().st_mtime  # the file system's clock, not this machine's
    for lease in path.parent.glob(f"{path.name}.*.*"):
        if lease == own or (shared and ".shared." in lease.name[len(path.name) :]):
            continue
        with contextlib.suppress(FileNotFoundError):  # just given back
            holder, space, number = [*lease.read_text().splitlines(), "", "", ""][:3]
            dead = space == _process_space() and number.isdecimal() and not Path("/proc", number).exists()
            if not dead and now - lease.stat().st_mtime < STALE_SECONDS:
                return holder
            lease.unlink()
    return None


def _process_space() -> str:
    """Names the processes that numbers of this process stand for; empty where that is not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
