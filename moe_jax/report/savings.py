"""Compares what each point of a sweep needs to reach the final held-out loss of the baseline."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from moe_jax.report.compare import reaches
from moe_jax.report.points import PointRuns, SweepResults, frozen, matches
from moe_jax.report.records import CurvePoint, Record


class Saving(NamedTuple):
    """How many times fewer steps, FLOPs and seconds than the baseline a run needs to reach its final loss."""

    steps: float
    flops: float
    seconds: float


def baselines(sweep: SweepResults, baseline: dict[str, Any]) -> Sequence[PointRuns | None]:
    """The baseline of every point, in their order.

    It is the one point that matches or, where several do, the one that differs in nothing else; None where that is not
    in the sweep.

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
    """The saving of each run of `point`, in the order of its seeds; None where a run does not get to the loss.

    A run is measured against the baseline's run of the same seed. Where that is missing or diverged, it is measured
    against the mean final loss and the mean need of the others. Where all of them are, there are no savings: [].
    """
    needs = {seed: _need(record) for seed, record in baseline.runs.items() if math.isfinite(record.curve[-1].loss)}
    if not needs:
        return []
    mean = CurvePoint(*np.mean(list(needs.values()), axis=0).tolist())
    return [_saving(record, needs.get(seed, mean)) for seed, record in point.runs.items()]


def _need(record: Record) -> CurvePoint:
    """Where the run first gets to its own final loss, which is finite."""
    final = record.curve[-1]
    first = reaches(record.curve, final.loss) or final
    return first._replace(loss=final.loss)  # interpolated, it would be off by a rounding


def _saving(record: Record, baseline: CurvePoint) -> Saving | None:
    needed = reaches(record.curve, baseline.loss)
    if needed is None:
        return None
    return Saving(baseline.step / needed.step, baseline.flops / needed.flops, baseline.seconds / needed.seconds)


def _text(baseline: dict[str, Any]) -> str:
    return ", ".join(f"{field}={value}" for field, value in baseline.items())
