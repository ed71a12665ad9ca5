"""Evaluation of a finished or interrupted run, beside baselines that know no model."""

from pathlib import Path

import jax
from absl import logging

from moe_jax.config.rules import ConfigError
from moe_jax.config.schema import RunConfig
from moe_jax.journal import workdir as records
from moe_jax.tasks.results import DATA
from moe_jax.train.checkpoints import Checkpoints
from moe_jax.train.setup import set_up


def evaluate_checkpoint(run: RunConfig, workdir: Path) -> None:
    """Evaluates the newest readable checkpoint of `workdir` on all of its held-out data; prints the result, and
    writes eval.json where it can.

    The mesh may differ from the one it was trained on. Raises ConfigError where there is no checkpoint of this run.
    """
    records.check_identity(workdir, run)
    setup = set_up(run)
    records.check_data(workdir, setup.data.sha256)
    with Checkpoints(workdir) as checkpoints:
        weights = checkpoints.restore_weights(setup.shapes.variables)
    if weights is None:
        raise ConfigError(
            f"--workdir={workdir} has no checkpoint yet: train until checkpoint.every={run.checkpoint.every}"
        )
    step = int(weights.step)
    logging.info("Evaluating step %d on all held-out data", step)
    evaluation = setup.evaluate(setup.compile_eval_step(), weights, batches=0)
    if jax.process_index():  # one of several processes speaks for all
        return
    print(setup.data.table(evaluation.scores), flush=True)
    result = {"step": step, **evaluation.as_dict(), **setup.data.baselines(), DATA: setup.data.sha256}
    try:
        records.write_json(workdir / "eval.json", result)
    except OSError as error:  # a directory that is only read, or a full disk
        logging.warning("%s is not written (%s)", workdir / "eval.json", error.strerror)
