"""A work directory at step 0 whose weights are given, from another framework or from another model."""

import shutil
from pathlib import Path

from moe_jax.config.rules import ConfigError
from moe_jax.config.schema import RunConfig
from moe_jax.journal import workdir as records
from moe_jax.journal.reading import CONFIG
from moe_jax.train.checkpoints import DRAFT, Checkpoints
from moe_jax.train.state import Variables


def begin(run: RunConfig, workdir: Path, weights: Variables, origin: str) -> None:
    """Makes `workdir` a run of 0 steps whose checkpoint holds `weights`, and nothing of an optimiser.

    A run of the same model starts from there, whatever its data, optimiser, losses and capacity are; evaluation works
    on it too.

    Args:
      run: whose model it is.
      workdir: must hold no run and no checkpoint; see `refuse_used`.
      weights: at step 0, in the shapes and shardings of the `Model` that `build_model` makes.
      origin: where they come from, for config.json and summary.json: "hf:FOLDER".

    Raises:
      ConfigError: the directory is used already, or cannot be written.
      MachineError: the system refused.
    """
    with records.own(workdir):
        refuse_used(workdir)
        records.prepare(workdir, run)
        shutil.rmtree(workdir / "checkpoints", ignore_errors=True)
        with Checkpoints(workdir, run.checkpoint) as checkpoints:
            checkpoints.save_weights(weights)
        records.claim_for_weights(workdir, run, origin)


def refuse_used(workdir: Path) -> None:
    """Raises ConfigError where `workdir` holds a run or checkpoints: nothing is written over, but for what an import
    that was killed has left, which is a checkpoint 0 without config.json.
    """
    checkpoints = [path for path in workdir.glob("checkpoints/*") if DRAFT not in path.name and path.name != "0"]
    if (workdir / CONFIG).exists() or checkpoints:
        raise ConfigError(f"--workdir={workdir} holds a run already, and nothing is written over: choose another")
