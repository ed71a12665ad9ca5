"""Compares runs: how they differ, and what each needs to reach the held-out loss of the first one."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from moe_jax.report.markdown import rows
from moe_jax.report.records import CurvePoint, Record, check_same_data
from moe_jax.tasks.results import LOSS, Result, loss_of, results_of


def reaches(curve: Sequence[CurvePoint], loss: float) -> CurvePoint | None:
    """The point at which `curve` first falls to `loss`, interpolated between evaluations; None if it does not."""
    before = None
    for after in curve:
        if after.loss <= loss:
            if before is None or not math.isfinite(before.loss):
                return after
            share = (before.loss - loss) / (before.loss - after.loss)
            step, seconds, flops, at = (float(a + share * (b - a)) for a, b in zip(before, after, strict=True))
            return CurvePoint(step, seconds, flops, at)
        before = after
    return None


def compare(records: Sequence[Record]) -> dict[str, Any]:
    """The content of compare.json: how the configurations differ, and for each run its results, by their names in
    summary.json, and the steps and seconds that it needs to reach the last loss of the first one.

    Raises ValueError where the runs were not evaluated on the same data, or the first one ends without a loss.
    """
    baseline = records[0]
    if len({record.name for record in records}) < len(records):
        raise ValueError("two of the runs' directories have the same name: rename one")
    check_same_data(records)
    target = baseline.curve[-1].loss
    if not math.isfinite(target):
        raise ValueError(f"{baseline.name}, the baseline, ends without a finite held-out loss: name another run first")
    needed = {record.name: reaches(record.curve, target) for record in records}
    full = needed[baseline.name] or baseline.curve[-1]  # a finite last loss is always reached
    return {
        "baseline": baseline.name,
        "task": baseline.task,
        "loss": target,
        "differences": _differences(records),
        "runs": {record.name: _row(record, needed[record.name], full) for record in records},
    }


def _row(record: Record, needed: CurvePoint | None, baseline: CurvePoint) -> dict[str, Any]:
    row: dict[str, Any] = {result.name: record.summary.get(result.name) for result in _shown(record.task)}
    row["steps"] = record.curve[-1].step
    if needed is None:
        return row | {"steps_to_loss": None}
    return row | {
        "steps_to_loss": needed.step,
        "seconds_to_loss": needed.seconds,
        "times_fewer_steps": baseline.step / needed.step,
        "times_less_time": baseline.seconds / needed.seconds,
        "times_fewer_flops": baseline.flops / needed.flops,
    }


def _shown(task: str) -> list[Result]:
    """The results that have a column: those that the configuration fixes, then those that were measured."""
    return sorted((result for result in results_of(task) if result.header), key=lambda result: result.kind != "fixed")


def _differences(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    fields = {name for record in records for name in record.config}
    values = {name: {record.name: record.config.get(name) for record in records} for name in sorted(fields)}
    return {name: by_run for name, by_run in values.items() if len({str(v) for v in by_run.values()}) > 1}


def table(result: dict[str, Any]) -> str:
    """The comparison in Markdown: results, cost to the baseline's loss, differences in configuration."""
    runs, differences = result["runs"], result["differences"]
    shown, loss = _shown(result["task"]), loss_of(result["task"])
    lines = rows(
        ["run", *(column.header for column in shown)],
        [[name, *_results(row, shown)] for name, row in runs.items()],
    )
    meanings = "; ".join(column.meaning for column in shown if column.meaning)
    lines += ["", f"{meanings[:1].upper()}{meanings[1:]}.", ""]
    lines += [f"To the {loss.header} of {result['baseline']} at its end, {loss.text(result['loss'])} {loss.unit}:", ""]
    lines += rows(
        ["run", "steps", "fewer steps", "fewer FLOPs", "less time"],
        [[name, *_cost(row)] for name, row in runs.items()],
    )
    if not differences:
        return "\n".join([*lines, "", "The runs have the same configuration."])
    lines += ["", "Differences in configuration:", ""]
    lines += rows(
        ["field", *runs], [[name, *(repr(by_run[run]) for run in runs)] for name, by_run in differences.items()]
    )
    return "\n".join(lines)


def _results(row: dict[str, Any], shown: Sequence[Result]) -> list[str]:
    diverged = not math.isfinite(row[LOSS])
    return ["diverged" if diverged and result.name == LOSS else result.text(row[result.name]) for result in shown]


def _cost(row: dict[str, Any]) -> list[str]:
    if row["steps_to_loss"] is None:
        return ["not reached", "-", "-", "-"]
    ratios = (row[name] for name in ("times_fewer_steps", "times_fewer_flops", "times_less_time"))
    return [f"{row['steps_to_loss']:,.0f}", *(f"{ratio:.2f}x" for ratio in ratios)]


def plot(records: Sequence[Record]) -> Figure:
    """A picture of the held-out loss against steps, training FLOPs and seconds of training, one line a run."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    for axis, field, label in zip(axes, ("step", "flops", "seconds"), ("step", "FLOPs", "seconds"), strict=True):
        for record in records:
            x = np.array([getattr(point, field) for point in record.curve])
            axis.plot(x, [point.loss for point in record.curve], label=record.name)
        axis.set_xlabel(f"training {label}")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(loss_of(records[0].task).axis)
    axes[0].legend()
    return figure
