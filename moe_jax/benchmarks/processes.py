"""Two processes of four devices over one of eight: seconds a step of the same run, in turns."""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from moe_jax.benchmarks.timing import paired_ratio
from moe_jax.journal.reading import STEP_SECONDS, read_lines

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "quickstart.py"
FIELDS = {
    "train.accumulate": 1,
    "mesh.expert": 8,
    "train.steps": 30,
    "log.every": 5,
    "eval.every": 0,
    "eval.batches": 1,
}
MOST_REPEATS = 3  # each takes a minute
FIRST = 10  # steps that are not counted


def run(repeats: int) -> list[dict[str, Any]]:
    """Trains in turns and prints the ratio of the median steps."""
    times: dict[str, list[float]] = {"two processes": [], "one process": []}
    for _ in range(min(repeats, MOST_REPEATS)):
        times["two processes"].append(_seconds_a_step(processes=2))
        times["one process"].append(_seconds_a_step(processes=1))
    ratio = paired_ratio(times, "two processes", "one process")
    print(f"2 processes x 4 devices over 1 x 8: {ratio}")
    return [{"ratio": ratio, "seconds_a_step": times}]


def _seconds_a_step(processes: int) -> float:
    with tempfile.TemporaryDirectory() as workdir:
        flags = [f"--config.{name}={value}" for name, value in FIELDS.items()]
        train = ["experiments/train.py", f"--config={CONFIG}", f"--workdir={workdir}", *flags]
        launcher = [
            "experiments/launch_local.py",
            f"--processes={processes}",
            f"--devices_per_process={8 // processes}",
        ]
        done = subprocess.run(
            [sys.executable, *launcher, "--", *train], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"the run failed: {done.stderr[-2000:]}")
        lines = [line for line in read_lines(Path(workdir)) if STEP_SECONDS in line and line["step"] > FIRST]
        return statistics.median(line[STEP_SECONDS] for line in lines)
