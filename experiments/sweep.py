"""Runs a sweep, or goes on with it where its work directory has one; then writes its report.

    python experiments/sweep.py --config=configs/sweeps/capacity_by_experts.py --workdir=runs/capacity --processes=2
    python experiments/sweep.py --config=configs/sweeps/capacity_by_experts.py --workdir=/tmp/smoke --smoke
    python experiments/sweep.py --config=... --workdir=... --slurm=slurm_partition=gpu,gpus_per_node=1 --processes=16
    python experiments/sweep.py --config=... --workdir=... --shard=$SLURM_ARRAY_TASK_ID/8
    python experiments/sweep.py --config=... --workdir=... --report_only --predict=v5p:2x2x2    # needs make venv-aot

--config.section.field=value changes the run that all cells start from. Cells that are finished are skipped, those that
were interrupted go on. Writes sweep.csv, report.md and pictures to WORKDIR; exits with 1 if a cell failed.
"""

import dataclasses

from absl import flags, logging

from moe_jax import cli
from moe_jax.audit.targets import target_of
from moe_jax.config.rules import ConfigError
from moe_jax.sweep.design import load_sweep, only
from moe_jax.sweep.launchers import LocalProcesses, Submitit
from moe_jax.sweep.ledger import FINISHED, Ledger
from moe_jax.sweep.predict import check_mesh, predict
from moe_jax.sweep.run import Shard, checked_cells, report, run_sweep, smoke

PROCESSES = flags.DEFINE_integer("processes", 1, "Cells at a time; on this machine each has its part of the cores.", 1)
SMOKE = flags.DEFINE_bool("smoke", False, "Run at least four cells for 20 steps each, on the text at hand.")
SEEDS = flags.DEFINE_list("seeds", None, "Seeds of every cell, in place of the sweep's own.")
ONLY = flags.DEFINE_multi_string("only", [], "FIELD=VALUE|VALUE: run these cells; --add_cells adds others later.")
ADD_CELLS = flags.DEFINE_bool("add_cells", False, "Add the cells that a sweep already in WORKDIR does not have.")
REPORT_ONLY = flags.DEFINE_bool("report_only", False, "Write the report of what is finished; run nothing.")
RETRIES = flags.DEFINE_integer("retries", 1, "How often a cell that was killed is started again.", 0)
SHARD = flags.DEFINE_string("shard", "0/1", "INDEX/COUNT: run every COUNT-th cell only, as one job of a job array.")
PREDICT = flags.DEFINE_string("predict", None, "Target, as in audit.py: what a step of each point would take there.")
PREDICT_MESH = flags.DEFINE_string("predict_mesh", "", "With --predict: sizes of mesh axes, as fsdp=4,expert=2.")
SLURM = flags.DEFINE_string("slurm", None, "Run cells as Slurm jobs; NAME=VALUE,... parameters for submitit.")


def main() -> int:
    """Flags to sweep to report."""
    path, shard = cli.config_path(), _shard()
    base, sweep = cli.base_config(), load_sweep(path)
    if SEEDS.value is not None:
        sweep = dataclasses.replace(sweep, seeds=cli.integers("--seeds", SEEDS.value))
    for condition in ONLY.value:
        sweep = only(sweep, condition)
    cli.refuse_overrides({"seed": "--seeds", **{name: "the sweep" for point in sweep.points for name in point}})
    if SMOKE.value:
        sweep, base = smoke(sweep, base, cli.overrides())
    local = LocalProcesses(PROCESSES.value) if SLURM.value is None else None
    ledger = Ledger(cli.workdir(), checked_cells(sweep, base, local.count_devices() if local else None))
    code, predict_mesh = 0, cli.sizes("--predict_mesh", PREDICT_MESH.value)
    check_mesh(predict_mesh)
    if PREDICT.value is None:
        cli.refuse_flags("predict_mesh", "is for --predict")
    else:
        target_of(PREDICT.value)  # before anything runs
    if REPORT_ONLY.value:
        ledger.check()
    else:
        launcher = local or Submitit("slurm", cli.workdir() / "slurm", cli.pairs("--slurm", SLURM.value))
        code = run_sweep(
            ledger, launcher, PROCESSES.value, shard=shard, retries=RETRIES.value, add_cells=ADD_CELLS.value
        )
    if PREDICT.value is not None:
        predict(ledger.cells, PREDICT.value, predict_mesh, ledger.workdir)
    if not REPORT_ONLY.value and not any(ledger.status(cell) == FINISHED for cell in ledger.cells):
        logging.warning("No cell is finished: there is no report yet")
    else:
        report(ledger, path.stem, sweep.baseline)
    return code


def _shard() -> Shard:
    index, _, count = SHARD.value.partition("/")
    shard = Shard(*cli.integers("--shard", [index, count]))
    if not 0 <= shard.index < shard.count:
        raise ConfigError(f"--shard={SHARD.value}: give INDEX/COUNT with 0 <= INDEX < COUNT")
    return shard


if __name__ == "__main__":
    cli.define_run_flags()
    cli.main(main)
