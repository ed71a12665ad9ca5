"""Sweeps that nobody lets run in peace: killed at random, and on file systems without locks."""

import csv
import os
import random
import signal
import time

import pytest
from tiny_sweep import Script, error_line, kill_cell, newest_step, saved_steps, write_config, write_text

from moe_jax.files.lock import is_held

POINTS = 'Sweep(grid({"moe.capacity_factor": (1.0, 2.0)}), seeds=(0, 1))'
TIMES = {"tokens_per_second", "training_seconds", "startup_seconds", "wall_seconds"}
NO_LOCKS = """
import errno, fcntl, os

def flock(*arguments):
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

fcntl.flock = flock
"""


def config_of(directory, steps, points=POINTS):
    fields = {"data.source": f"text:{write_text(directory / 'text')}", "data.cache_dir": str(directory / "cache")}
    fields |= {"train.steps": steps, "checkpoint.every": 50, "moe.jitter": 0.1}
    return write_config(directory / "points.py", fields, points)


def results(sweep):
    """sweep.csv without its times."""
    with (sweep / "sweep.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name not in TIMES} for row in csv.DictReader(file)]


@pytest.mark.soak
def test_a_sweep_runs_without_locks_of_the_system(tmp_path, monkeypatch):
    """Lustre without flock: the parent and its cells leave leases, which keep a second sweep out."""
    (tmp_path / "sitecustomize.py").write_text(NO_LOCKS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH", "")])))
    config, sweep = config_of(tmp_path, 200, 'Sweep([{"moe.capacity_factor": 1.0}], seeds=(0, 1))'), tmp_path / "sweep"
    first = Script("sweep.py", tmp_path / "first.log", config, sweep, "--processes=2")
    first.until(lambda: list(sweep.glob("cells/*/cell.lock.exclusive.*")))
    assert list(sweep.glob("sweep.lock.exclusive.*"))
    code, output = Script("sweep.py", tmp_path / "second.log", config, sweep).end()
    assert (code, "another sweep runs here (process" in error_line(output)) == (2, True), output
    code, output = first.end()
    assert code == 0, output
    assert [row["status"] for row in results(sweep)] == ["finished", "finished"]
    assert not list(sweep.rglob("*.lock.*")), "all leases are given back"


def working(sweep):
    """The cells that a process works on."""
    return [path.parent for path in sweep.glob("cells/*/cell.lock") if is_held(path)]


@pytest.mark.soak
def test_kills_at_random_change_no_result(tmp_path):
    """Twelve and more: SIGKILL, SIGTERM and SIGUSR2 for cells, SIGKILL, SIGTERM and SIGINT for the sweep itself."""
    chance, config = random.Random(0), config_of(tmp_path, 400)
    calm, wild = tmp_path / "calm", tmp_path / "wild"
    code, output = Script("sweep.py", tmp_path / "calm.log", config, calm).end()
    assert code == 0, output
    kills, lives = [], 0
    while True:
        script = Script("sweep.py", tmp_path / f"{lives}.log", config, wild, "--processes=2", "--retries=100")
        lives += 1
        while script.process.poll() is None and len(kills) < 14:
            time.sleep(chance.uniform(1, 5))
            cells = working(wild)
            if cells and len(kills) % 4 < 3:
                cell, number = chance.choice(cells), (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR2)[len(kills) % 4]
                try:
                    kill_cell(cell, number)
                except (ProcessLookupError, IndexError):
                    continue
                kills.append((cell.name, number.name, newest_step(cell), saved_steps(cell)))
            elif cells:
                number = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)[lives % 3]
                script.process.send_signal(number)
                kills.append(("sweep", number.name))
                break
        code, output = script.end()
        if code == 0:
            break
        assert code in (128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGKILL), output
    assert len(kills) >= 12, kills
    assert results(wild) == results(calm)
    assert [row["status"] for row in results(wild)] == ["finished"] * 4
