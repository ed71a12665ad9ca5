"""Runs side by side: how they differ, and what each needs to reach the first one's held-out loss."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from moe_jax.analysis.records import Point, Record


def reaches(curve: Sequence[Point], loss: float) -> Point | None:
    """Where `curve` first falls to `loss`, interpolated between two evaluations; None if it does not."""
    for before, after in zip(curve[:1] + list(curve), curve, strict=False):
        if after.loss <= loss:
            share = 1.0 if before.loss <= after.loss else (before.loss - loss) / (before.loss - after.loss)
            return Point(*(float(a + share * (b - a)) for a, b in zip(before, after, strict=True)))
    return None


def compare(records: Sequence[Record]) -> dict[str, Any]:
    """Differences in configuration, results, and what each run needs to reach the last loss of the first one.

    Raises ValueError where the runs were not evaluated on the same data.
    """
    baseline = records[0]
    if len({record.name for record in records}) < len(records):
        raise ValueError("two of the runs' directories have the same name: rename one")
    if len({record.summary["data_sha256"] for record in records}) > 1:
        raise ValueError("the runs have different data (data_sha256 in summary.json): their losses do not compare")
    target = baseline.curve[-1].loss
    needed = {record.name: reaches(record.curve, target) for record in records}
    full = needed[baseline.name]
    return {
        "baseline": baseline.name,
        "loss": target,
        "differences": _differences(records),
        "runs": {record.name: _row(record, needed[record.name], full) for record in records},
    }


def _row(record: Record, needed: Point | None, baseline: Point) -> dict[str, Any]:
    final = record.curve[-1]
    row: dict[str, Any] = {
        "final_loss": final.loss,
        "steps": final.step,
        "flops_per_token": record.summary["flops_per_token"],
        "total_params": record.summary["total_params"],
    }
    if needed is None:
        return row | {"steps_to_loss": None}
    return row | {
        "steps_to_loss": needed.step,
        "seconds_to_loss": needed.seconds,
        "times_fewer_steps": baseline.step / needed.step,
        "times_less_time": baseline.seconds / needed.seconds,
        "times_fewer_flops": baseline.flops / needed.flops,
    }


def _differences(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    fields = {name for record in records for name in record.config}
    values = {name: {record.name: record.config.get(name) for record in records} for name in sorted(fields)}
    return {name: by_run for name, by_run in values.items() if len({str(v) for v in by_run.values()}) > 1}


def table(result: dict[str, Any]) -> str:
    """The comparison as a Markdown table."""
    lines = [
        f"Held-out loss of {result['baseline']} at its end: {result['loss']:.4f} nats a token.",
        "",
        "| run | parameters | FLOPs a token | final loss | steps to that loss | fewer steps | less time |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in result["runs"].items():
        reached = row["steps_to_loss"] is not None
        needed = (
            f"{row['steps_to_loss']:.0f} | {row['times_fewer_steps']:.2f}x | {row['times_less_time']:.2f}x"
            if reached
            else "not reached | - | -"
        )
        lines.append(
            f"| {name} | {row['total_params']:,} | {row['flops_per_token']:,} | {row['final_loss']:.4f} | {needed} |"
        )
    for field, values in result["differences"].items():
        lines += ["", f"{field}: " + ", ".join(f"{name} {value!r}" for name, value in values.items())]
    return "\n".join(lines)


def plot(records: Sequence[Record]) -> Figure:
    """Held-out loss against steps, training FLOPs and seconds of training."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    for axis, field, label in zip(axes, ("step", "flops", "seconds"), ("step", "FLOPs", "seconds"), strict=True):
        for record in records:
            x = np.array([getattr(point, field) for point in record.curve])
            axis.plot(x, [point.loss for point in record.curve], label=record.name)
        axis.set_xlabel(f"training {label}")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("held-out loss (nats a token)")
    axes[0].legend()
    return figure
