"""Statistics of a handful of seeds: intervals of means, differences between points, and the Pareto front."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

CONFIDENCE = 0.95
SIMULATIONS = 1_000
ROUNDING = 1e-12  # relative: smaller residuals are float64's, not the runs'


class Estimate(NamedTuple):
    """A mean over seeds and its bootstrap interval; NaN bounds where there are fewer than two seeds."""

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """A pair of points: mean of `first` minus mean of `second`, with its simultaneous interval."""

    first: int
    second: int
    mean: float
    low: float
    high: float
    p_value: float  # adjusted for all pairs

    @property
    def supported(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.p_value < 1 - CONFIDENCE


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
    """Tukey's honestly significant differences of all pairs, at 95% for all of them together; values are independent.

    Args:
        groups: at least two groups of at least two finite values.

    Returns:
        One difference a pair; none where no group has two different values.
    """
    if all(len(set(group)) == 1 for group in groups):
        return []
    result = stats.tukey_hsd(*groups)
    mean, p_value, (low, high) = result.statistic, result.pvalue, result.confidence_interval(CONFIDENCE)
    return [
        Difference(i, j, float(mean[i, j]), float(low[i, j]), float(high[i, j]), float(p_value[i, j]))
        for i, j in itertools.combinations(range(len(groups)), 2)
    ]


def blocked_tukey(losses: Float[np.ndarray, "P S"]) -> list[Difference]:
    """Tukey's intervals of all pairs of points, at 95% for all of them together, blocked by seed.

    The randomised complete block design: loss = point + seed + residual, the residual with (P - 1)(S - 1) degrees of
    freedom, so that what a seed does to all points alike is no noise (Montgomery, Design and Analysis of Experiments,
    section 4.1). With two points it is the paired t test.

    Args:
        losses: of at least two points over the same seeds, at least two of them; finite.

    Returns:
        One difference a pair; none where all differences are the same at every seed.
    """
    num_points, num_seeds = losses.shape
    means = losses.mean(axis=1)
    residuals = losses - means[:, None] - losses.mean(axis=0) + losses.mean()
    if np.abs(residuals).max() <= ROUNDING * np.abs(losses).max():
        return []
    degrees = (num_points - 1) * (num_seeds - 1)
    standard_error = math.sqrt(np.square(residuals).sum() / degrees / num_seeds)
    half_width = standard_error * stats.studentized_range.ppf(CONFIDENCE, num_points, degrees)
    differences = []
    for i, j in itertools.combinations(range(num_points), 2):
        mean = means[i] - means[j]
        p_value = stats.studentized_range.sf(abs(mean) / standard_error, num_points, degrees)
        differences.append(Difference(i, j, *map(float, (mean, mean - half_width, mean + half_width, p_value))))
    return differences


class Scatter(NamedTuple):
    """How unequally the differences of two points scatter over seeds; `blocked_tukey` takes them to scatter equally."""

    least: float  # standard deviation over seeds of the difference that varies least
    most: float
    p_value: float  # how often normal losses of equal scatter have a ratio of the two at least as large


def scatter(losses: Float[np.ndarray, "P S"]) -> Scatter:
    """The scatter of losses, given as to `blocked_tukey`. Its p-value is simulated, always from the same draws."""
    first, second = np.triu_indices(len(losses), k=1)
    deviations = lambda x: np.std(x[first] - x[second], axis=-1, ddof=1)
    ratio = lambda x: np.max(deviations(x)) / np.min(deviations(x))
    rng = np.random.default_rng(0)
    simulated = np.array([ratio(rng.normal(size=losses.shape)) for _ in range(SIMULATIONS)])
    with np.errstate(divide="ignore"):  # two points may differ by the same at every seed
        p_value = np.mean(simulated >= ratio(losses))
    return Scatter(float(np.min(deviations(losses))), float(np.max(deviations(losses))), float(p_value))


def pareto(costs: Sequence[float], losses: Sequence[float]) -> list[bool]:
    """Which points no other one beats: none is as low in both and lower in one."""
    points = list(zip(costs, losses, strict=True))
    return [not any(c <= cost and v <= loss and (c, v) != (cost, loss) for c, v in points) for cost, loss in points]
