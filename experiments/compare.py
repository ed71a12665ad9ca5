"""Compares finished runs with the first of them: steps, FLOPs and time to its held-out loss, curves, differences.

    python experiments/compare.py --runs=runs/dense_small,runs/switch_small --workdir=runs/compare

Writes compare.json, compare.md and compare.png to WORKDIR.
"""

from pathlib import Path

from absl import flags

from moe_jax import cli
from moe_jax.config.rules import directory
from moe_jax.journal.workdir import make_writable, write_json
from moe_jax.report.compare import compare, plot, table
from moe_jax.report.records import read_record

RUNS = flags.DEFINE_multi_string(
    "runs",
    None,
    "Work directories of finished runs, joined by commas or each with a --runs of its own; the first is the baseline.",
    required=True,
)


def main() -> None:
    """Reads, compares, writes, prints."""
    workdir = cli.workdir()
    records = [read_record(run) for value in RUNS.value for run in _directories(value)]
    result = compare(records)
    make_writable(workdir)
    write_json(workdir / "compare.json", result)
    (workdir / "compare.md").write_text(table(result) + "\n")
    plot(records).savefig(workdir / "compare.png", dpi=120)
    print(table(result))


def _directories(value: str) -> list[Path]:
    """A directory (cells of a sweep have commas in their names), or several joined by commas."""
    whole = directory("--runs", value)
    return [whole] if whole.is_dir() else [directory("--runs", part) for part in value.split(",")]


if __name__ == "__main__":
    cli.define_workdir_flag()
    cli.main(main)
