"""Writes a sweep's report: which points are better, which differences the seeds support, and pictures."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from moe_jax.report import sweep_tables
from moe_jax.report.points import CellResult, SweepResults, count_statuses, gather
from moe_jax.report.records import check_same_data
from moe_jax.report.savings import baselines
from moe_jax.report.sweep_plots import figures, front
from moe_jax.tasks.results import DATA

CHANGES_HELD_OUT = ("data.batch_size", "eval.batches")  # together, the size of the held-out sample


def write_report(
    workdir: Path,
    title: str,
    cells: Sequence[CellResult],
    baseline: dict[str, Any] | None,
    further: Sequence[str] = (),
) -> Path:
    """Writes report.md and its pictures into `workdir`, each whole or not at all.

    Args:
        workdir: that of the sweep; it is made where there is none.
        title: the report's heading.
        cells: every cell of the sweep, also those that are not finished.
        baseline: values of some swept fields, or of all: the point that others are measured against.
        further: paragraphs behind the results.

    Returns:
        The path of report.md.

    Raises:
        ValueError: no cell is finished, the runs have different data, or no point matches `baseline`.
    """
    sweep = gather(cells)
    check_same_data(sweep.records)
    against = None if baseline is None else baselines(sweep, baseline)
    pictures = figures(sweep)
    sections = [
        f"# {title}",
        _summary(sweep),
        *sweep_tables.results(sweep),
        *sweep_tables.differences(sweep, against),
        *(sweep_tables.needs(sweep, against) if against else []),
        *_front(sweep),
        *further,
        "## Pictures",
        "Faint dots and lines are seeds, strong ones means, bars 95% bootstrap intervals.",
        *(f"![{name.replace('_', ' ')}]({name}.png)" for name in pictures),
        *sweep_tables.unfinished(sweep),
    ]
    workdir.mkdir(parents=True, exist_ok=True)
    for name, figure in pictures.items():
        _write_picture(workdir / f"{name}.png", figure)
    path = workdir / "report.md"
    draft = path.with_name(f"{path.name}.partial")
    draft.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    os.replace(draft, path)
    return path


def _summary(sweep: SweepResults) -> str:
    records = sweep.records
    seeds = sorted({seed for point in sweep.points for seed in point.runs})
    steps = sorted({record.curve[-1].step for record in records})
    length = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"
    lines = [
        f"{len(sweep.cells)} cells of {len(sweep.points)} points: {count_statuses(sweep.cells)}. "
        f"Seeds finished: {', '.join(map(str, seeds))}. Steps: {length}. "
        f"Data: {records[0].summary[DATA][:16]} (SHA-256)."
    ]
    missing = len(sweep.cells) - len(records)
    if missing:
        lines.append(f"**{missing} cells are missing from all figures below; they are listed at the end.**")
    sizes = {tuple(record.config.get(field) for field in CHANGES_HELD_OUT) for record in records}
    if len(sizes) > 1 and any(batches != 0 for _, batches in sizes):
        lines.append(
            "**The points are evaluated on held-out samples of different size (data.batch_size times eval.batches): "
            "set eval.batches=0 to compare them on all held-out data.**"
        )
    return "\n\n".join(lines)


def _front(sweep: SweepResults) -> list[str]:
    best = front(sweep)
    if len([point for point in sweep.points if point.comparable]) < 2:
        return []
    names = [f"{point.label} ({np.mean(point.losses):.4f})" for point in best]
    return [
        "## Loss against step time",
        "No other point is both faster a step and lower in mean held-out loss than these, fastest first: "
        f"{'; '.join(names)}. Noise of timing and of seeds is not considered here.",
    ]


def _write_picture(path: Path, figure: Figure) -> None:
    draft = path.with_name(f"{path.name}.partial")
    figure.savefig(draft, format="png", dpi=120)
    os.replace(draft, path)
