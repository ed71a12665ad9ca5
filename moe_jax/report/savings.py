"""What each point of a sweep needs to reach the final held-out loss of the baseline."""

import math
from typing import Any, NamedTuple

import numpy as np

from moe_jax.report.compare import reaches
from moe_jax.report.points import PointRuns, SweepResults, frozen, matches
from moe_jax.report.records import CurvePoint, Record


class Saving(NamedTuple):
    """The baseline's need over a run's, for one seed."""

    steps: float
    flops: float
    seconds: float


def baselines(sweep: SweepResults, baseline: dict[str, Any]) -> list[PointRuns | None]:
    """The baseline of every point: the one point that matches, or of several the one that differs in nothing else.

    Raises ValueError where no point of the sweep matches `baseline`.
    """
    candidates = [point for point in sweep.points if matches(point.point, baseline)]
    if not candidates:
        raise ValueError(f"no point of the sweep has {_text(baseline)}: add it to the sweep, or name another baseline")
    if len(candidates) == 1:
        return candidates * len(sweep.points)
    by_point = {frozen(candidate.point): candidate for candidate in candidates}
    return [by_point.get(frozen(point.point | baseline)) for point in sweep.points]


def savings(point: PointRuns, baseline: PointRuns) -> list[Saving | None]:
    """How many times fewer steps, FLOPs and seconds each run of `point` needs; None where it does not get there.

    A run is measured against the baseline's run of the same seed; where that is missing or diverged, against the mean
    final loss and the mean need of the others. Without any: no savings, [].
    """
    needs = {seed: _need(record) for seed, record in baseline.runs.items() if math.isfinite(record.curve[-1].loss)}
    if not needs:
        return []
    mean = CurvePoint(*(float(value) for value in np.mean(list(needs.values()), axis=0)))
    return [_saving(record, needs.get(seed, mean)) for seed, record in point.runs.items()]


def _need(record: Record) -> CurvePoint:
    """Where the run first gets to its own final loss."""
    loss = record.curve[-1].loss
    return reaches(record.curve, loss)._replace(loss=loss)  # interpolated, it would be off by a rounding


def _saving(record: Record, baseline: CurvePoint) -> Saving | None:
    needed = reaches(record.curve, baseline.loss)
    if needed is None:
        return None
    return Saving(baseline.step / needed.step, baseline.flops / needed.flops, baseline.seconds / needed.seconds)


def _text(baseline: dict[str, Any]) -> str:
    return ", ".join(f"{field}={value}" for field, value in baseline.items())
