"""Says what a sweep varies: the value that `get_sweep()` of a file in `configs/sweeps/` returns.

Such a file is a config file (`get_config()` is the run that all cells start from) with one function more:

    def get_sweep():
        return Sweep(grid({"moe.capacity_factor": (1.0, 2.0), "moe.num_experts": (4, 8)}), seeds=(0, 1))
"""

import ast
import dataclasses
import itertools
import math
import runpy
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from scipy.stats import qmc

from moe_jax.config.rules import ConfigError, positive
from moe_jax.report.points import frozen, matches

Point = dict[str, Any]  # {"moe.num_experts": 8, ...}: the fields in which a cell differs from the base config
Derivation = Callable[[ml_collections.ConfigDict, list[Point]], list[Point]]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep trains every point once with every seed.

    NumPy's numbers and arrays become Python's. Raises ConfigError for what is no sweep.
    """

    points: Sequence[Point]
    seeds: Sequence[int] = (0,)
    derive: Sequence[Derivation] = ()  # fields that follow from the swept ones, see `derive`; applied in order
    baseline: Point | None = None  # the point that the report measures the others against
    left_out: Sequence[Point] = ()  # not run, but fields are derived as if they were

    def __post_init__(self):
        set_once = lambda name, value: object.__setattr__(self, name, value)
        for name in ("points", "left_out"):
            set_once(
                name,
                [_point(f"Sweep({name}=...)", point) for point in _listed(name, getattr(self, name), "grid({...})")],
            )
        set_once("seeds", tuple(map(_seed, _listed("seeds", self.seeds, "(0, 1, 2)"))))
        set_once("derive", tuple(_listed("derive", self.derive, "(fixed_group(),)")))
        for derive in self.derive:
            if not callable(derive):
                raise ConfigError(
                    f"Sweep(derive=...) has {derive!r}: give what fixed_group() or equal_flops(...) return"
                )
        if self.baseline is not None:
            set_once("baseline", _point("Sweep(baseline=...)", self.baseline))


def _listed(name: str, values: Any, example: str) -> list:
    """The elements of a sequence that is a field of `Sweep`; raises ConfigError where it is none."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise ConfigError(f"Sweep({name}={values!r}) is no sequence: give one, such as {name}={example}")
    return list(values)


def _point(place: str, point: Any) -> Point:
    if not isinstance(point, Mapping) or not all(isinstance(name, str) for name in point):
        raise ConfigError(f"{place} has {point!r}: a point is a dict of fields, such as {{'moe.num_experts': 8}}")
    return {name: plain(value) for name, value in point.items()}


def _seed(value: Any) -> int:
    seed = plain(value)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ConfigError(f"Sweep(seeds=...) has {seed!r}: give whole numbers, such as seeds=(0, 1, 2)")
    return seed


def plain(value: Any) -> Any:
    """The value with NumPy's and JAX's numbers and arrays as Python's, inside lists and tuples too."""
    if hasattr(value, "__array__") and hasattr(value, "tolist"):
        return plain(value.tolist())
    return type(value)(map(plain, value)) if type(value) in (list, tuple) else value


def load_sweep(path: Path) -> Sweep:
    """The sweep that a config file declares. Raises ConfigError, with the line, if it declares none or fails."""
    try:
        module = runpy.run_path(str(path))
    except Exception as error:
        raise _in_file(path, "the file fails", error) from None
    if "get_sweep" not in module:
        raise ConfigError(f"--config={path} declares no sweep: add get_sweep(), or see configs/sweeps/")
    try:
        sweep = module["get_sweep"]()
    except Exception as error:
        raise _in_file(path, "get_sweep() fails", error) from None
    if not isinstance(sweep, Sweep):
        raise ConfigError(f"--config={path}: get_sweep() returns a {type(sweep).__name__}: let it return a Sweep")
    return sweep


def _in_file(path: Path, what: str, error: Exception) -> ConfigError:
    """One line that says where in the file an error comes from; those of this package name their remedy themselves."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    place = f"--config={path}" + (f", line {lines[-1]}" if lines else "")
    if isinstance(error, ConfigError):
        return ConfigError(f"{place}: {error}")
    reason = " ".join(str(error).split())
    return ConfigError(f"{place}: {what} ({type(error).__name__}{': ' if reason else ''}{reason}): correct it")


def grid(values: Mapping[str, Sequence[Any]]) -> list[Point]:
    """Every combination, the last field varying fastest. Grids and lists of points can be added up.

    Raises ConfigError where a field does not have a sequence of values.
    """
    for name, choices in values.items():
        if isinstance(choices, str | bytes | Mapping) or not isinstance(choices, Iterable):
            raise ConfigError(f"grid: {name}={choices!r} is no sequence of values: give one, such as ({choices!r},)")
    return [dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values())]


def only(sweep: Sweep, condition: str) -> Sweep:
    """The sweep with only the points that meet a condition "moe.num_experts=1|4|16".

    A number may be written in any way: 1e-3 is 0.001. Raises ConfigError where the sweep does not have the field or one
    of the values.
    """
    name, _, values = condition.partition("=")
    wanted = values.split("|")
    points = [point for point in sweep.points if any(_is_value(text, point.get(name)) for text in wanted)]
    there = list({frozen(point[name]): point[name] for point in sweep.points if name in point}.values())
    if not points or not all(text == "None" or any(_is_value(text, value) for value in there) for text in wanted):
        listed = ", ".join(sorted(map(str, there)))
        raise ConfigError(
            f"--only={condition} names what the sweep does not have: "
            + (f"its values are {listed}" if there else "that field is not swept")
        )
    return narrowed(sweep, points)


def _is_value(text: str, value: Any) -> bool:
    """Whether `text` is a way to write `value`."""
    if text == str(value):
        return True
    try:
        read = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return False
    return isinstance(read, bool) == isinstance(value, bool) and frozen(read) == frozen(value)


def narrowed(sweep: Sweep, points: Sequence[Point]) -> Sweep:
    """The sweep with only these of its points.

    Derived fields stay what they are in the whole sweep, so that the cells are the same ones. A baseline that is not
    among the points is forgotten.
    """
    kept = {frozen(point) for point in points}
    left_out = [*sweep.left_out, *(point for point in sweep.points if frozen(point) not in kept)]
    has_baseline = sweep.baseline is not None and any(matches(point, sweep.baseline) for point in points)
    return dataclasses.replace(
        sweep, points=points, left_out=left_out, baseline=sweep.baseline if has_baseline else None
    )


class Uniform(NamedTuple):
    """A real number between two bounds."""

    low: float
    high: float

    def check(self, name: str) -> None:
        """Raises ConfigError unless the bounds are in order."""
        if not self.low < self.high:
            raise ConfigError(f"quasi_random: {name}={self}: give low < high")

    def at(self, u: float) -> float:
        """The value at the fraction u of the way."""
        return self.low + u * (self.high - self.low)


class LogUniform(NamedTuple):
    """A positive real number between two bounds, uniform in its logarithm."""

    low: float
    high: float

    def check(self, name: str) -> None:
        """Raises ConfigError unless the bounds are positive and in order."""
        if not 0 < self.low < self.high:
            raise ConfigError(f"quasi_random: {name}={self}: give 0 < low < high")

    def at(self, u: float) -> float:
        """The value at the fraction u of the way."""
        return math.exp(math.log(self.low) + u * (math.log(self.high) - math.log(self.low)))


class Choice(NamedTuple):
    """One of several values."""

    values: Sequence[Any]

    def check(self, name: str) -> None:
        """Raises ConfigError where there is nothing to choose from."""
        if isinstance(self.values, str) or not isinstance(self.values, Sequence | np.ndarray) or not len(self.values):
            raise ConfigError(f"quasi_random: {name}={self}: give a sequence of values")

    def at(self, u: float) -> Any:
        """The value at the fraction u of the list."""
        return self.values[min(int(u * len(self.values)), len(self.values) - 1)]


def quasi_random(ranges: Mapping[str, Uniform | LogUniform | Choice], num: int, seed: int = 0) -> list[Point]:
    """`num` points that a scrambled Halton sequence spreads evenly over the ranges.

    A longer draw begins with the points of a shorter one. Real numbers are rounded to four digits, to be readable in a
    cell's name. Raises ConfigError for what is no range or no number of points.
    """
    if not isinstance(num, int | np.integer) or isinstance(num, bool):
        raise ConfigError(f"quasi_random: num={num!r} is no whole number: give one")
    positive("quasi_random: num", int(num))
    for name, one in ranges.items():
        if not isinstance(one, Uniform | LogUniform | Choice):
            raise ConfigError(f"quasi_random: {name}={one!r} is no range: give Uniform, LogUniform or Choice")
        one.check(name)
    draws = qmc.Halton(len(ranges), scramble=True, seed=seed).random(num)
    readable = lambda value: float(f"{value:.4g}") if isinstance(value, float) else value
    return [{name: readable(ranges[name].at(u)) for name, u in zip(ranges, draw, strict=True)} for draw in draws]
