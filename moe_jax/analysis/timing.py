"""Timing by ratio: candidates take turns within one run, so that a machine that drifts slows all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax


def paired_times(candidates: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every call, by candidate: each is called once to compile, then in turns, `repeats` times.

    A candidate returns JAX arrays; the time includes waiting for them.
    """
    for call in candidates.values():
        jax.block_until_ready(call())
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, call in candidates.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(time.perf_counter() - start)
    return times


def median_ratio(times: Mapping[str, list[float]], name: str, reference: str) -> float:
    """Median over the turns of time(name) / time(reference)."""
    return statistics.median(a / b for a, b in zip(times[name], times[reference], strict=True))
