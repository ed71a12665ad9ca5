"""Lives of a run: experiments/train.py in processes that are killed, and what they leave."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
TIMES = {"startup_seconds", "train/tokens_per_second", "train/step_seconds", "tokens_per_second", "training_seconds"}


class Life:
    """experiments/train.py in a process on one device."""

    def __init__(self, config, directory, steps):
        command = [sys.executable, REPOSITORY / "experiments/train.py", f"--config={config}", f"--workdir={directory}"]
        self.directory, self.log = directory, Path(f"{directory}.log")
        paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {
            "XLA_FLAGS": "",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "JAX_COMPILATION_CACHE_DIR": str(directory.parent / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, f"--config.train.steps={steps}"], env=environment, stdout=log, stderr=log
            )

    def end(self):
        """Exit code, and what it said."""
        code = self.process.wait(timeout=300)
        return code, self.log.read_text()

    def until(self, condition):
        """Waits for it; the process has to be alive meanwhile."""
        while not condition():
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.002)

    def stop_at(self, step, number):
        """Sends a signal once a step is logged."""
        self.until(lambda: newest_step(self.directory) >= step)
        self.process.send_signal(number)
        return self.end()


def read_lines(directory):
    """Whole lines only: the last one may be being written."""
    path = directory / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def newest_step(directory):
    return max((line["step"] for line in read_lines(directory)), default=0)


def saved_steps(directory):
    names = (
        [path.name for path in (directory / "checkpoints").iterdir()] if (directory / "checkpoints").exists() else []
    )
    return sorted(int(name) for name in names if name.isdigit())


def without_times(values):
    return {name: value for name, value in values.items() if name not in TIMES}


def write_config(path, fields):
    """A config file of these fields, flattened."""
    path.write_text(
        "from moe_jax.config import default_config\n\n\ndef get_config():\n    config = default_config()\n"
        f"    config.update_from_flattened_dict({dict(fields)!r})\n    return config\n"
    )
    return path
