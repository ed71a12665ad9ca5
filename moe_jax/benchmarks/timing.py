"""Timing by ratio: candidates take turns within one run, so that a drift of the machine slows all of them."""

import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np


class Ratio(NamedTuple):
    """The ratio of two candidates' times over the repeats: its median, and its quartiles as the spread."""

    median: float
    lower_quartile: float
    upper_quartile: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.lower_quartile:.2f} to {self.upper_quartile:.2f})"


def paired_times(candidates: Mapping[str, Callable[[], Any]], repeats: int, seed: int = 0) -> dict[str, list[float]]:
    """Seconds of every call, by candidate.

    Each candidate is called once to compile and then once in each repeat, in the order of `turns`. It returns JAX
    arrays, and the time includes waiting for them.
    """
    for call in candidates.values():
        jax.block_until_ready(call())
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for order in turns(candidates, repeats, seed):
        for name in order:
            start = time.perf_counter()
            jax.block_until_ready(candidates[name]())
            times[name].append(time.perf_counter() - start)
    return times


def turns(names: Iterable[str], repeats: int, seed: int = 0) -> list[list[str]]:
    """The order of the candidates in each repeat, which `seed` determines.

    Every repeat is shuffled anew, so that no candidate always pays for the memory that the same other one took before.
    """
    names, draw = list(names), random.Random(seed)
    return [draw.sample(names, len(names)) for _ in range(repeats)]


def paired_ratio(times: Mapping[str, list[float]], name: str, reference: str) -> Ratio:
    """time(name) / time(reference) within one repeat, over the repeats."""
    ratios = [a / b for a, b in zip(times[name], times[reference], strict=True)]
    lower, upper = np.quantile(ratios, [0.25, 0.75])
    return Ratio(statistics.median(ratios), float(lower), float(upper))


def median_ratio(times: Mapping[str, list[float]], name: str, reference: str) -> float:
    """The median of `paired_ratio`."""
    return paired_ratio(times, name, reference).median
