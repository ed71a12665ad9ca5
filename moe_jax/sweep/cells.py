"""Makes the cells of a sweep, names them after what distinguishes them, and checks them before the first one starts."""

import collections
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections

from moe_jax.config.schema import RunConfig, flatten
from moe_jax.report.points import matches
from moe_jax.resolve import ConfigError, check_field, resolve
from moe_jax.sweep.derive import tree_with
from moe_jax.sweep.design import Point, Sweep, plain
from moe_jax.tasks.results import TERMS

MAX_NAME = 120  # characters
EVALUATION = ("eval.", "moe.eval_capacity_factor")  # fields that change neither what is trained nor how fast


class Cell(NamedTuple):
    """One run of a sweep: a point, trained with one seed in a work directory of its own."""

    name: str  # its work directory has the same
    point: Point  # the swept fields, without the seed
    derived: Point  # the fields that followed from them
    run: RunConfig
    twin: str | None  # an earlier cell that trains the same, differing in evaluation only

    def fields(self) -> dict[str, Any]:
        """The whole configuration, flattened, as JSON gives it back."""
        return json.loads(json.dumps(flatten(self.run)))


def make_cells(
    sweep: Sweep, base: ml_collections.ConfigDict, num_devices: int | None
) -> tuple[list[Cell], dict[str, str]]:
    """The cells that can run, and for those that cannot {name: why}.

    `num_devices` is how many every cell will find; None means as many as its mesh asks for.

    Raises ConfigError where the sweep as a whole is wrong: it has a field that does not exist, no points, a cell twice.
    """
    _check(sweep)
    tree = base.to_dict()
    derived = _derived(sweep, base)
    cells: list[Cell] = []
    invalid: dict[str, str] = {}
    trained: dict[tuple, str] = {}
    runs: dict[RunConfig, str] = {}
    for seed in sweep.seeds:  # outside: the whole grid is seen early, and later seeds find their programs compiled
        for point, all_fields in zip(sweep.points, derived, strict=True):
            name = name_of({**point, "seed": seed})
            config = tree_with(tree, {**all_fields, "seed": seed})
            try:
                run = resolve(config, devices_of(config) if num_devices is None else num_devices)
            except ConfigError as error:
                invalid[name] = str(error)
                continue
            other = runs.setdefault(run, name)
            if other != name:
                raise ConfigError(f"{name} and {other} are the same run: leave one of them out")
            same_training = tuple(value for k, value in flatten(run).items() if not k.startswith(EVALUATION))
            followed = {field: value for field, value in all_fields.items() if field not in point}
            cells.append(Cell(name, point, followed, run, trained.get(same_training)))
            trained.setdefault(same_training, name)
    _check_same_data(cells)
    return cells, invalid


def _derived(sweep: Sweep, base: ml_collections.ConfigDict) -> list[Point]:
    """The fields of each point of the sweep, with those that follow from them in the whole of it."""
    derived = [*map(dict, sweep.points), *map(dict, sweep.left_out)]
    for number, derive in enumerate(sweep.derive):
        before, place = derived, f"Sweep(derive=...)[{number}]"
        try:
            derived = derive(base, derived)
        except ConfigError:
            raise
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ConfigError(f"{place} fails ({reason}): correct it") from error
        if not isinstance(derived, list) or len(derived) != len(before):
            raise ConfigError(f"{place} is to return a list with each of the {len(before)} points: correct it")
        derived = [_point_kept(place, earlier, now) for earlier, now in zip(before, derived, strict=True)]
    return derived[: len(sweep.points)]


def _point_kept(place: str, earlier: Point, derived: Point) -> Point:
    for name, value in earlier.items():
        if name not in derived or derived[name] != value:
            now = f"{value} becomes {derived[name]}" if name in derived else "it is gone"
            raise ConfigError(f"{name} is swept or derived, and derived again ({now}) by {place}: do one of both")
    return {name: plain(value) for name, value in derived.items()}


def name_of(fields: Point) -> str:
    """A name that suits a file system and TensorBoard, as in "capacity_factor=1.25,num_experts=8,seed=0"."""
    name = ",".join(f"{_short(field)}={value}" for field, value in fields.items())
    safe = re.sub(r"[^\w.,=+-]", "_", name, flags=re.ASCII)
    if safe == name and len(name) <= MAX_NAME:
        return name
    digest = hashlib.sha256(json.dumps(list(fields.items()), default=str).encode()).hexdigest()[:8]
    return f"{safe[:MAX_NAME]}_{digest}"


def _short(field: str) -> str:
    """The field without its section, where no other section has one of that name."""
    last = field.rsplit(".", 1)[-1]
    return last if _FIELDS_OF_NAME[last] == 1 else field


_FIELDS_OF_NAME = collections.Counter(name.rsplit(".", 1)[-1] for name in flatten(RunConfig()))


def _check(sweep: Sweep) -> None:
    if not sweep.points or not sweep.seeds:
        raise ConfigError("the sweep has no points or no seeds: give Sweep at least one of each")
    names = dict.fromkeys(name for point in [*sweep.points, *sweep.left_out] for name in point)
    for name in names:
        check_field(name)
    if "seed" in names:
        raise ConfigError("seed is swept as a field: give the seeds to Sweep(seeds=...), the report averages over them")
    if sweep.baseline is not None and not any(matches(point, sweep.baseline) for point in sweep.points):
        raise ConfigError(f"no point of the sweep has baseline={sweep.baseline}: add it, or name another baseline")
    counts = collections.Counter(name_of({**point, "seed": seed}) for point in sweep.points for seed in sweep.seeds)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise ConfigError(f"the sweep has the cell {twice[0]} {counts[twice[0]]} times: leave the others out")


def _check_same_data(cells: Sequence[Cell]) -> None:
    """Raises ConfigError where the cells differ in their data or in how it is cut, since losses would not compare."""
    tasks = sorted({cell.run.task for cell in cells})
    same = [name for task in tasks for name in TERMS[task].same]
    for name in ("task", *same):
        values = {str(_value(cell.run, name)) for cell in cells}
        if len(values) > 1:
            raise ConfigError(
                f"{name} varies ({', '.join(sorted(values))}), and held-out losses on different data do not compare: "
                "make a sweep of each"
            )


def _value(run: RunConfig, name: str) -> Any:
    section, _, field = name.rpartition(".")
    return getattr(getattr(run, section) if section else run, field)


def devices_of(config: Mapping[str, Any]) -> int:
    """Devices that the mesh of a config, as nested dicts, asks for; raises ConfigError where it leaves that open."""
    for axis, size in config["mesh"].items():
        if size == -1:
            raise ConfigError(f"mesh.{axis}=-1 leaves open how many devices a cell needs: give a number")
    whole = all(isinstance(size, int) for size in config["mesh"].values())
    return math.prod(config["mesh"].values()) if whole else 1  # what is no number is named by `resolve`
