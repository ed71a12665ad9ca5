"""Runs side by side: how they differ, and what each needs to reach the first one's held-out loss."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from moe_jax.report.markdown import rows
from moe_jax.report.records import CurvePoint, Record, check_same_data


def reaches(curve: Sequence[CurvePoint], loss: float) -> CurvePoint | None:
    """Where `curve` first falls to `loss`, interpolated between two evaluations; None if it does not."""
    before = None
    for after in curve:
        if after.loss <= loss:
            if before is None or not math.isfinite(before.loss):
                return after
            share = (before.loss - loss) / (before.loss - after.loss)
            return CurvePoint(*(float(a + share * (b - a)) for a, b in zip(before, after, strict=True)))
        before = after
    return None


def compare(records: Sequence[Record]) -> dict[str, Any]:
    """Differences in configuration, results, and what each run needs to reach the last loss of the first one.

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
    full = needed[baseline.name]
    return {
        "baseline": baseline.name,
        "loss": target,
        "differences": _differences(records),
        "runs": {record.name: _row(record, needed[record.name], full) for record in records},
    }


def _row(record: Record, needed: CurvePoint | None, baseline: CurvePoint) -> dict[str, Any]:
    final, summary = record.curve[-1], record.summary
    row: dict[str, Any] = {
        "final_loss": final.loss,
        "bits_per_byte": summary["eval_bits_per_byte"],
        "steps": final.step,
        "flops_per_token": summary["flops_per_token"],
        "total_params": summary["total_params"],
        "dropped_fraction": summary["dropped_fraction"],
        "max_violation": summary["max_violation"],
        "tokens_per_second": summary["tokens_per_second"],
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
    """The comparison in Markdown: results, cost to the baseline's loss, differences in configuration."""
    runs, differences = result["runs"], result["differences"]
    lines = rows(
        ["run", "parameters", "FLOPs a token", "held-out loss", "bits per byte", "dropped", "MaxVio", "tokens/s"],
        [[name, *_results(row)] for name, row in runs.items()],
    )
    means = "Means over MoE layers: the dropped fraction of the last training step, MaxVio of the last steps together."
    lines += ["", means, ""]
    lines += [f"To the held-out loss of {result['baseline']} at its end, {result['loss']:.4f} nats a token:", ""]
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


def _results(row: dict[str, Any]) -> list[str]:
    diverged = not math.isfinite(row["final_loss"])
    return [
        f"{row['total_params']:,}",
        f"{row['flops_per_token']:,}",
        "diverged" if diverged else f"{row['final_loss']:.4f}",
        "-" if diverged else f"{row['bits_per_byte']:.4f}",
        f"{row['dropped_fraction']:.2%}",
        f"{row['max_violation']:.2f}",
        f"{row['tokens_per_second']:,.0f}",
    ]


def _cost(row: dict[str, Any]) -> list[str]:
    if row["steps_to_loss"] is None:
        return ["not reached", "-", "-", "-"]
    ratios = (row[name] for name in ("times_fewer_steps", "times_fewer_flops", "times_less_time"))
    return [f"{row['steps_to_loss']:,.0f}", *(f"{ratio:.2f}x" for ratio in ratios)]


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
