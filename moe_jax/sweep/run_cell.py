"""Trains one cell, as its cell.json describes it. An error is recorded in failure.json, beside the run."""

import json
import shutil
from pathlib import Path

import jax
from absl import logging

from moe_jax.files.lock import is_held, locked
from moe_jax.journal.reading import CONFIG, METRICS
from moe_jax.resolve import restore
from moe_jax.sweep import failure
from moe_jax.sweep.ledger import CELL
from moe_jax.tasks.results import loss_of
from moe_jax.train.loop import train


def run_cell(workdir: Path) -> int:
    """Trains the cell in `workdir` and returns the exit code of `train`.

    Where another process still works on the cell, it waits for that to end. Raises what `train` raises, recorded.
    """
    lock = workdir / "cell.lock"
    if is_held(lock):
        logging.info("Another process works on this cell; waiting for its end")
    with locked(lock):
        cell = json.loads((workdir / CELL).read_text())
        _share_compiled_programs(workdir.parent.parent / "compiled")
        try:
            run = restore(cell["fields"], jax.device_count())
            if cell["twin"]:
                adopt(workdir.parent / cell["twin"], workdir, loss_of(run.task).metric)
            return train(run, workdir)
        except Exception as error:
            message = " ".join(str(error).split()) or type(error).__name__
            failure.record(workdir, cell["fields"], message)
            raise


def adopt(twin: Path, workdir: Path, evaluated: str) -> None:
    """Starts an empty cell from the finished training of its twin, so that the last evaluation alone is left to do.

    The evaluations that the twin made during training, lines with the metric `evaluated`, are not copied, since it
    evaluates in another way.
    """
    if (workdir / CONFIG).exists():
        return
    shutil.copytree(twin / "checkpoints", workdir / "checkpoints", dirs_exist_ok=True)
    lines = (twin / METRICS).read_text().splitlines()
    kept = [line for line in lines if evaluated not in json.loads(line)]
    (workdir / METRICS).write_text("".join(f"{line}\n" for line in kept))


def _share_compiled_programs(directory: Path) -> None:
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
