"""The pictures of a sweep. Seeds are faint dots or lines, means strong ones, bars the 95% bootstrap intervals."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from moe_jax.report.points import PointRuns, SweepResults, describe
from moe_jax.report.records import Record
from moe_jax.report.scales import is_numeric, scale
from moe_jax.report.seeds import estimate, pareto
from moe_jax.tasks.results import LOSS, loss_of, results_of

LEGEND_ROWS = 24


def figures(sweep: SweepResults) -> dict[str, Figure]:
    """All pictures that the sweep allows, by the name of their file without its ending."""
    made = {
        f"loss_against_{sweep.names[field].replace('.', '_')}": _loss_against(sweep, field) for field in sweep.varying
    }
    if sweep.varying and any(record.config.get("moe.num_experts", 1) for record in sweep.records):
        made["dropped_and_max_violation"] = _routing(sweep, _first_numeric(sweep))
    made["loss_against_training_flops"] = _curves(sweep, 2, "training FLOPs")
    made["loss_against_training_time"] = _curves(sweep, 1, "training time (s, without compilation and evaluation)")
    if sum(point.comparable for point in sweep.points) > 1:
        made["loss_against_step_time"] = _pareto(sweep)
    return made


def front(sweep: SweepResults) -> list[PointRuns]:
    """The points on the Pareto front of mean final loss and mean step time, fastest first."""
    points = [point for point in sweep.points if point.comparable]
    times = [float(np.mean([record.step_seconds for record in point.runs.values()])) for point in points]
    best = pareto(times, [float(np.mean(point.losses)) for point in points])
    chosen = [(time, i) for i, time in enumerate(times) if best[i]]
    return [points[i] for _, i in sorted(chosen)]


def _first_numeric(sweep: SweepResults) -> str:
    numeric = [field for field in sweep.varying if is_numeric([point.point.get(field) for point in sweep.points])]
    return (numeric or sweep.varying)[0]


def _loss_against(sweep: SweepResults, field: str) -> Figure:
    figure, axis = _figure(1)
    _against(axis[0], sweep, field, LOSS)
    axis[0].set_ylabel(loss_of(sweep.task).axis)
    _legend(figure, axis[0])
    return figure


def _routing(sweep: SweepResults, field: str) -> Figure:
    """One panel for each result of kind "routing"."""
    results = [result for result in results_of(sweep.task) if result.kind == "routing"]
    figure, axes = _figure(len(results))
    for axis, result in zip(axes, results, strict=True):
        _against(axis, sweep, field, result.name)
        axis.set_ylabel(result.axis)
        top = axis.dataLim.y1 or 1.0
        axis.set_ylim(-0.03 * top, 1.08 * top)
    _legend(figure, axes[0])
    return figure


def _against(axis, sweep: SweepResults, field: str, name: str) -> None:
    """Draws the result `name` over the values of `field`, a line for each combination of the other varying fields."""
    x_scale = scale(field, [point.point.get(field) for point in sweep.points])
    others = {other: sweep.names[other] for other in sweep.varying if other != field}
    lines: dict[str, list[PointRuns]] = {}
    for point in sweep.points:
        if point.runs:
            lines.setdefault(describe(point.point, others), []).append(point)
    for i, (label, points) in enumerate(lines.items()):
        style = _style(i)
        points.sort(key=lambda point: x_scale.place(point.point.get(field)))
        x = [x_scale.place(point.point.get(field)) for point in points]
        values = [[record.summary.get(name, math.nan) for record in point.runs.values()] for point in points]
        for place, dots in zip(x, values, strict=True):
            axis.plot([place - x_scale.aside] * len(dots), dots, ".", color=style["color"], alpha=0.35, markersize=6)
        estimates = np.array([estimate(dots) for dots in values])
        _means(axis, np.array(x), estimates, style["color"])
        joined = [place in x_scale.joined for place in x]
        axis.plot(np.array(x)[joined], estimates[joined, 0], marker="o", markersize=5, label=label, **style)
    x_scale.apply(axis)


def _means(axis, x: np.ndarray, estimates: np.ndarray, color, label: str = "") -> None:
    """Draws means and intervals, [points, (mean, low, high)], as markers and bars; a single seed has no bar."""
    mean, low, high = estimates.T
    axis.plot(x, mean, "o", color=color, markersize=5, label=label)
    known = np.isfinite(low)
    bars = (mean - low)[known], (high - mean)[known]
    axis.errorbar(x[known], mean[known], yerr=bars, fmt="none", color=color, capsize=3)


def _curves(sweep: SweepResults, column: int, label: str) -> Figure:
    """Held-out loss during training, against one column of `records.CurvePoint`.

    There is a line for each point of the sweep, and a faint one for each seed.
    """
    figure, (axis,) = _figure(1)
    points = [point for point in sweep.points if point.runs]
    for i, point in enumerate(points):
        style = _style(i)
        for record in point.runs.values():
            curve = np.array(record.curve)
            axis.plot(curve[:, column], curve[:, 3], color=style["color"], alpha=0.25, lw=0.8)
        mean = _mean_curve(list(point.runs.values()))
        axis.plot(mean[:, column], mean[:, 3], label=point.label, **style)
    first = [record.curve[0].loss for point in points if point.comparable for record in point.runs.values()]
    last = [loss for point in points for loss in point.losses if math.isfinite(loss)]
    if first and last and max(first) > min(last):
        margin = 0.05 * (max(first) - min(last))
        axis.set_ylim(min(last) - margin, max(first) + margin)
    axis.set_xlim(left=0)
    axis.set_xlabel(label)
    axis.set_ylabel(loss_of(sweep.task).axis)
    _legend(figure, axis)
    return figure


def _mean_curve(records: Sequence[Record]) -> np.ndarray:
    """The mean over runs at the steps at which all were evaluated: [steps, columns of `records.CurvePoint`]."""
    by_step = [{point.step: point for point in record.curve} for record in records]
    common = sorted(set.intersection(*(set(points) for points in by_step)))
    return np.array([np.mean([points[step] for points in by_step], axis=0) for step in common]).reshape(-1, 4)


def _pareto(sweep: SweepResults) -> Figure:
    """Final loss over step time; the points that no other one beats in both are joined and named."""
    figure, (axis,) = _figure(1)
    best = front(sweep)
    colors = {point.label: _style(i)["color"] for i, point in enumerate(best)}
    corners = []
    for point in (point for point in sweep.points if point.comparable):
        times = [record.step_seconds for record in point.runs.values()]
        color = colors.get(point.label, "0.6")
        axis.plot(times, point.losses, ".", color=color, alpha=0.35, markersize=6)
        loss = np.array([estimate(point.losses)])
        label = point.label if point in best else ""
        _means(axis, np.array([np.mean(times)]), loss, color, label)
        if point in best:
            corners.append((float(np.mean(times)), loss[0, 0]))
    axis.plot(
        *np.array(sorted(corners)).T, color="0.3", lw=1, ls="--", drawstyle="steps-post", label="Pareto front", zorder=0
    )
    axis.set_xlabel("seconds a training step")
    axis.set_ylabel(loss_of(sweep.task).axis)
    _legend(figure, axis)
    return figure


def _figure(panels: int) -> tuple[Figure, list]:
    figure = Figure(figsize=(6.4 if panels == 1 else 5.25 * panels, 4.2), layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for axis in axes:
        axis.grid(alpha=0.3)
    return figure, axes


def _legend(figure: Figure, axis) -> None:
    """Lists the labelled lines of `axis` right of the panels and widens the figure by as much as they need."""
    handles, labels = axis.get_legend_handles_labels()
    labels = [label.replace("$", r"\$") for label in labels]  # no formula
    if not any(labels):
        return
    columns = math.ceil(len(labels) / LEGEND_ROWS)
    width, height = figure.get_size_inches()
    width += columns * (0.6 + 0.068 * max(map(len, labels)))
    figure.set_size_inches(width, max(height, 0.5 + 0.19 * min(len(labels), LEGEND_ROWS)))
    figure.legend(handles, labels, loc="outside right upper", ncols=columns, fontsize=8, frameon=False)


def _style(i: int) -> dict[str, Any]:
    """Line i's colour and dashes: ten colours that are easy to tell apart, then the same dashed."""
    return {"color": matplotlib.colormaps["tab10"](i % 10), "linestyle": ("-", "--", ":", "-.")[i // 10 % 4]}
