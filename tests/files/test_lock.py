"""Locks, with flock and on a file system that has none."""

import errno
import os
import subprocess
import sys
import textwrap
import time

import pytest

from moe_jax.files import lock
from moe_jax.files.lock import is_held, locked

FAKE = textwrap.dedent(
    """
    import errno, fcntl, os, sys, time
    from pathlib import Path
    from moe_jax.files import lock
    def flock(file, operation):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if sys.argv[2] == "lease":
        lock.fcntl.flock = flock
    with lock.locked(Path(sys.argv[1]), wait=False):
        print("held", flush=True)
        time.sleep(60)
    """
)


@pytest.fixture(params=["flock", "ENOSYS", "ENOLCK"])
def kind(request, monkeypatch):
    """A file system with flock, and two without."""
    if request.param != "flock":

        def flock(file, operation):
            raise OSError(getattr(errno, request.param), "no locks here")

        monkeypatch.setattr(lock.fcntl, "flock", flock)
    return request.param


def test_a_lock_has_one_holder(tmp_path, kind):
    path = tmp_path / "lock"
    with locked(path, wait=False):
        assert is_held(path)
        with pytest.raises(BlockingIOError, match=rf"process {os.getpid()} on "), locked(path, wait=False):
            pass
        with pytest.raises(BlockingIOError), locked(path, shared=True, wait=False):
            pass
    assert not is_held(path)


def test_a_shared_lock_has_many(tmp_path, kind):
    path = tmp_path / "lock"
    with locked(path, wait=False):
        pass
    with locked(path, shared=True, wait=False), locked(path, shared=True, wait=False):
        with pytest.raises(BlockingIOError) as refused, locked(path, wait=False):
            pass
        assert (str(refused.value) == "") == (kind == "flock")  # a shared flock has no name, and none of the past
    assert [entry.name for entry in tmp_path.iterdir()] == ["lock"]


@pytest.mark.parametrize("kind", ["flock", "lease"], indirect=False)
def test_a_lock_ends_with_its_holder(tmp_path, kind, monkeypatch):
    if kind == "lease":
        monkeypatch.setattr(lock.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSYS, "none")))
    path = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", FAKE, str(path), kind], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(BlockingIOError, match=f"process {holder.pid} on "), locked(path, wait=False):
        pass
    holder.kill()
    holder.wait()
    with locked(path, wait=False):
        pass


def test_the_lease_of_a_dead_process_elsewhere_goes_stale(tmp_path, monkeypatch):
    monkeypatch.setattr(lock.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSYS, "none")))
    path = tmp_path / "lock"
    foreign = tmp_path / "lock.exclusive.0123"
    foreign.write_text("process 7 on another\nanother space\n7")
    with pytest.raises(BlockingIOError, match="process 7 on another"), locked(path, wait=False):
        pass
    past = time.time() - lock.STALE_SECONDS - 1
    os.utime(foreign, (past, past))
    with locked(path, wait=False):
        assert not foreign.exists()


def test_the_number_of_a_dead_process_means_nothing_elsewhere(tmp_path, monkeypatch):
    """On another host or in another container, a living process may have a number that is free here."""
    monkeypatch.setattr(lock.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSYS, "none")))
    foreign = tmp_path / "lock.exclusive.0123"
    foreign.write_text("process 4000001 on another\nanother space\n4000001")  # above the largest number
    with pytest.raises(BlockingIOError, match="process 4000001 on another"), locked(tmp_path / "lock", wait=False):
        pass
    foreign.write_text(f"process 4000001 here\n{lock._process_space()}\n4000001")
    with locked(tmp_path / "lock", wait=False):
        pass


def test_a_lease_is_kept_fresh(tmp_path, monkeypatch):
    monkeypatch.setattr(lock.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSYS, "none")))
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.01)
    with locked(tmp_path / "lock", wait=False):
        (lease,) = tmp_path.glob("lock.exclusive.*")
        os.utime(lease, (0, 0))
        deadline = time.monotonic() + 10
        while lease.stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.005)


def test_another_error_of_the_lock_is_raised(tmp_path, monkeypatch):
    monkeypatch.setattr(lock.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(OSError, match="broken"), locked(tmp_path / "lock"):
        pass
