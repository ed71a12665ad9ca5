"""Tiny sweeps: cells of a few kB of text, and experiments/sweep.py in a process that sees one device."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import tiny_run

from moe_jax.config import default_config
from moe_jax.sweep.cells import make_cells
from moe_jax.sweep.design import Sweep

ROOT = Path(__file__).parents[2]
DEADLINE = 300  # seconds for what takes ten on an idle machine
TINY = tiny_run.TINY | {
    "train.steps": 8,
    "log.every": 1,
    "eval.every": 0,
    "eval.batches": 2,
    "checkpoint.every": 1_000,
}
TIMES = {"train/tokens_per_second", "train/step_seconds", "tokens_per_second", "training_seconds", "startup_seconds"}
ONE_DEVICE = {"XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PLATFORMS": "cpu"}


def base(fields=None):
    """The tiny config, other fields changed."""
    config = default_config()
    config.update_from_flattened_dict(TINY | (fields or {}))
    return config


def cells_of(points, seeds=(0,), fields=None):
    """The cells of a sweep without derived fields."""
    cells, invalid = make_cells(Sweep(points, seeds), base(fields), 1)
    assert not invalid
    return cells


def summary(cell):
    """A summary.json as the cell's training writes it."""
    names = "train_loss eval_loss eval_bits_per_byte dropped_fraction max_violation tokens_per_second"
    numbers = dict.fromkeys([*names.split(), "training_seconds", "startup_seconds"], 1.5)
    sizes = dict.fromkeys(["total_params", "active_params", "flops_per_token"], 7)
    return {"steps": cell.run.train.steps, **numbers, **sizes, "data_sha256": "0" * 64}


def finish(workdir, cell):
    """What a finished cell leaves, as far as the ledger reads it."""
    (workdir / "config.json").write_text("{}")
    (workdir / "summary.json").write_text(json.dumps(summary(cell)))


def write_text(directory):
    """Ten documents."""
    random = np.random.RandomState(0)
    directory.mkdir()
    for i in range(10):
        (directory / f"{i}.txt").write_text(" ".join(random.choice(tiny_run.WORDS, 60)))
    return directory


def write_config(path, fields, sweep):
    """A file with get_config() and, if `sweep` is not empty, get_sweep() returning that expression."""
    path.write_text(
        "from moe_jax.config import default_config\n"
        "from moe_jax.sweep.design import Sweep, grid\n\n\n"
        "def get_config():\n"
        "    config = default_config()\n"
        f"    config.update_from_flattened_dict({TINY | fields!r})\n"
        "    return config\n" + (f"\n\ndef get_sweep():\n    return {sweep}\n" if sweep else "")
    )
    return path


class Script:
    """A script of experiments/ in a process; its output goes to a file."""

    def __init__(self, name, output, config, workdir, *arguments, variables=None):
        command = [sys.executable, ROOT / "experiments" / name, f"--config={config}", f"--workdir={workdir}"]
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        environment = {**os.environ, **ONE_DEVICE, **(variables or {}), "PYTHONPATH": paths}
        self.output = output
        with output.open("wb") as file:
            self.process = subprocess.Popen([*command, *arguments], env=environment, stdout=file, stderr=file)

    def end(self):
        """Exit code, and what it said."""
        try:
            return self.process.wait(timeout=DEADLINE), self.output.read_text()
        finally:
            self.process.kill()

    def until(self, condition):
        """Waits for it; the process has to be alive meanwhile."""
        try:
            wait_until(lambda: self.process.poll() is not None or condition())
            assert self.process.poll() is None, self.output.read_text()
        except BaseException:
            self.process.kill()
            raise


def wait_until(condition):
    """Polls."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def error_line(output):
    """The one line of bad input."""
    assert "Traceback" not in output, output
    [line] = [line for line in output.splitlines() if line.startswith("error: ")]
    return line


def lines(workdir):
    """The whole lines of metrics.jsonl."""
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def newest_step(workdir):
    """0 before the first."""
    return max((line["step"] for line in lines(workdir)), default=0)


def saved_steps(workdir):
    """The steps that have a whole checkpoint."""
    checkpoints = workdir / "checkpoints"
    return (
        sorted(int(path.name) for path in checkpoints.iterdir() if path.name.isdigit()) if checkpoints.exists() else []
    )


def kill_cell(workdir, number=signal.SIGKILL):
    """A signal for the process that works in a cell: its lock names it."""
    words = (workdir / "cell.lock").read_text().split()
    os.kill(int(words[1]), number)


def without_times(values):
    """A line of metrics.jsonl or a summary without what differs from one life to the next."""
    return {name: value for name, value in values.items() if name not in TIMES}
