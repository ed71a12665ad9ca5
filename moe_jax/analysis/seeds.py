"""What a handful of seeds supports: intervals of means, differences between points, and the Pareto front."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A mean over seeds and its bootstrap interval; NaN bounds where there are fewer than two seeds."""

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """A pair of groups: mean of `first` minus mean of `second`, with its simultaneous interval."""

    first: int
    second: int
    mean: float
    low: float
    high: float
    supported: bool


def estimate(values: Sequence[float]) -> Estimate:
    """Mean of `values` and its 95% percentile bootstrap interval, always from the same resamples.

    Over two or three values the interval is their range. All NaN where a value is not finite.
    """
    if not values or not all(map(math.isfinite, values)):
        return Estimate(math.nan, math.nan, math.nan)
    mean = float(np.mean(values))
    if len(values) == 1:
        return Estimate(mean, math.nan, math.nan)
    interval = stats.bootstrap(
        (values,), np.mean, confidence_level=CONFIDENCE, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high))


def tukey(groups: Sequence[Sequence[float]]) -> list[Difference]:
    """Tukey's honestly significant differences of all pairs, at 95% for all of them together.

    Args:
        groups: at least two groups of at least two finite values; their variance within groups is not zero.
    """
    result = stats.tukey_hsd(*groups)
    interval = result.confidence_interval(CONFIDENCE)
    return [
        Difference(
            i,
            j,
            float(result.statistic[i, j]),
            float(interval.low[i, j]),
            float(interval.high[i, j]),
            bool(result.pvalue[i, j] < 1 - CONFIDENCE),
        )
        for i in range(len(groups))
        for j in range(i + 1, len(groups))
    ]


def pareto(costs: Sequence[float], losses: Sequence[float]) -> list[bool]:
    """Which points no other one beats: none is as low in both and lower in one."""
    points = list(zip(costs, losses, strict=True))
    return [not any(c <= cost and v <= loss and (c, v) != (cost, loss) for c, v in points) for cost, loss in points]
