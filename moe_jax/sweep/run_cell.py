"""One cell: trains what its cell.json describes. An error is recorded in failure.json, beside the run."""

import json
import shutil
from pathlib import Path

import jax
from absl import logging

from moe_jax.journal import workdir
from moe_jax.resolve.resolve import restore
from moe_jax.sweep import failure
from moe_jax.sweep.ledger import CELL, is_held, locked
from moe_jax.train.loop import train


def run_cell(directory: Path) -> int:
    """Trains the cell in `directory`; returns the exit code of `train`. Waits where another process is still at it."""
    lock = directory / "cell.lock"
    if is_held(lock):
        logging.info("Another process is at this cell; waiting for its end")
    with locked(lock):
        cell = json.loads((directory / CELL).read_text())
        _share_compiled_programs(directory.parent.parent / "compiled")
        try:
            run = restore(cell["fields"], jax.device_count())
            if cell["twin"]:
                adopt(directory.parent / cell["twin"], directory)
            return train(run, directory)
        except Exception as error:
            message = " ".join(str(error).split()) or type(error).__name__
            failure.record(directory, cell["fields"], message)
            raise


def adopt(twin: Path, directory: Path) -> None:
    """Starts an empty cell from the finished training of its twin: what is left to do is the last evaluation.

    The twin's evaluations during training stay with it: they were made by its own rules.
    """
    if (directory / workdir.CONFIG).exists():
        return
    shutil.copytree(twin / "checkpoints", directory / "checkpoints", dirs_exist_ok=True)
    lines = (twin / "metrics.jsonl").read_text().splitlines()
    kept = [line for line in lines if "eval/loss" not in json.loads(line)]
    (directory / "metrics.jsonl").write_text("".join(f"{line}\n" for line in kept))


def _share_compiled_programs(folder: Path) -> None:
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
