"""Says what a sweep varies: the value that `get_sweep()` of a file in `configs/sweeps/` returns.

Such a file is a config file (`get_config()` is the run that all cells start from) with one function more:

    def get_sweep():
        return Sweep(grid({"moe.capacity_factor": (1.0, 2.0), "moe.num_experts": (4, 8)}), seeds=(0, 1))
"""

import dataclasses
import itertools
import math
import runpy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
from scipy.stats import qmc

from moe_jax.report.points import matches

Point = dict[str, Any]  # {"moe.num_experts": 8, ...}: the fields in which a cell differs from the base config
Derivation = Callable[[ml_collections.ConfigDict, list[Point]], list[Point]]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep trains every point once with every seed."""

    points: Sequence[Point]
    seeds: Sequence[int] = (0,)
    derive: Sequence[Derivation] = ()  # fields that follow from the swept ones, see `derive`; applied in order
    baseline: Point | None = None  # the point that the report measures the others against
    left_out: Sequence[Point] = ()  # not run, but fields are derived as if they were


def load_sweep(path: Path) -> Sweep:
    """The sweep that a config file declares. Raises ValueError if it declares none."""
    module = runpy.run_path(str(path))
    if "get_sweep" not in module:
        raise ValueError(f"--config={path} declares no sweep: add get_sweep(), or see configs/sweeps/")
    try:
        sweep = module["get_sweep"]()
    except (TypeError, ValueError, AttributeError, KeyError, NameError) as error:
        raise ValueError(f"--config={path}: get_sweep() fails ({type(error).__name__}: {error}): correct it") from None
    if not isinstance(sweep, Sweep):
        raise ValueError(f"--config={path}: get_sweep() returns a {type(sweep).__name__}: let it return a Sweep")
    return sweep


def grid(values: Mapping[str, Sequence[Any]]) -> list[Point]:
    """Every combination, the last field varying fastest. Grids and lists of points can be added up."""
    return [dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values())]


def only(sweep: Sweep, condition: str) -> Sweep:
    """The sweep with only the points that meet a condition "moe.num_experts=1|4|16".

    Raises ValueError where the sweep does not have the field or one of the values.
    """
    name, _, values = condition.partition("=")
    points = [point for point in sweep.points if str(point.get(name)) in values.split("|")]
    there = sorted({str(point[name]) for point in sweep.points if name in point})
    if not points or not set(values.split("|")) <= {*there, "None"}:
        known = f"its values are {', '.join(there)}" if there else "that field is not swept"
        raise ValueError(f"--only={condition} names what the sweep does not have: {known}")
    return narrowed(sweep, points)


def narrowed(sweep: Sweep, points: Sequence[Point]) -> Sweep:
    """The sweep with only these of its points.

    Derived fields stay what they are in the whole sweep, so that the cells are the same ones. A baseline that is not
    among the points is forgotten.
    """
    left_out = [*sweep.left_out, *(point for point in sweep.points if point not in points)]
    kept = sweep.baseline is not None and any(matches(point, sweep.baseline) for point in points)
    return dataclasses.replace(sweep, points=points, left_out=left_out, baseline=sweep.baseline if kept else None)


class Uniform(NamedTuple):
    """A real number between two bounds."""

    low: float
    high: float

    def at(self, u: float) -> float:
        """The value at the fraction u of the way."""
        return self.low + u * (self.high - self.low)


class LogUniform(NamedTuple):
    """A positive real number between two bounds, uniform in its logarithm."""

    low: float
    high: float

    def at(self, u: float) -> float:
        """The value at the fraction u of the way."""
        return math.exp(math.log(self.low) + u * (math.log(self.high) - math.log(self.low)))


class Choice(NamedTuple):
    """One of several values."""

    values: Sequence[Any]

    def at(self, u: float) -> Any:
        """The value at the fraction u of the list."""
        return self.values[min(int(u * len(self.values)), len(self.values) - 1)]


def quasi_random(ranges: Mapping[str, Uniform | LogUniform | Choice], num: int, seed: int = 0) -> list[Point]:
    """`num` points that a scrambled Halton sequence spreads evenly over the ranges.

    A longer draw begins with the points of a shorter one. Real numbers are rounded to four digits, to be readable in a
    cell's name.
    """
    draws = qmc.Halton(len(ranges), scramble=True, seed=seed).random(num)
    readable = lambda value: float(f"{value:.4g}") if isinstance(value, float) else value
    return [{name: readable(ranges[name].at(u)) for name, u in zip(ranges, draw, strict=True)} for draw in draws]
