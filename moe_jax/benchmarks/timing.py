"""Timing by ratio: candidates take turns within one run, so that a machine that drifts slows all of them."""

import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np


class Ratio(NamedTuple):
    """Of the times of two candidates, over the repeats: the median, and the quartiles as its spread."""

    median: float
    lower_quartile: float
    upper_quartile: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.lower_quartile:.2f} to {self.upper_quartile:.2f})"


def paired_times(candidates: Mapping[str, Callable[[], Any]], repeats: int, seed: int = 0) -> dict[str, list[float]]:
    """Seconds of every call, by candidate: each is called once to compile, then once in each repeat, see `turns`.

    A candidate returns JAX arrays; the time includes waiting for them.
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
    """The order of the candidates in each repeat: shuffled anew, so that none always pays for the memory that the same
    other one took before it. The same for the same seed.
    """
    names, draw = list(names), random.Random(seed)
    return [draw.sample(names, len(names)) for _ in range(repeats)]


def paired_ratio(times: Mapping[str, list[float]], name: str, reference: str) -> Ratio:
    """time(name) / time(reference) of the same repeat, over the repeats."""
    ratios = [a / b for a, b in zip(times[name], times[reference], strict=True)]
    lower, upper = np.quantile(ratios, [0.25, 0.75])
    return Ratio(statistics.median(ratios), float(lower), float(upper))


def median_ratio(times: Mapping[str, list[float]], name: str, reference: str) -> float:
    """The median of `paired_ratio`."""
    return paired_ratio(times, name, reference).median
