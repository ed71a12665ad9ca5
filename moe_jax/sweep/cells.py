"""Makes the cells of a sweep, names them after what distinguishes them, and checks them before the first one starts."""

import collections
import hashlib
import json
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import ml_collections

from moe_jax.config.schema import RunConfig, flatten
from moe_jax.report.points import matches
from moe_jax.resolve import ConfigError, check_field, resolve
from moe_jax.sweep.derive import with_fields
from moe_jax.sweep.design import Point, Sweep
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

    Raises ValueError where the sweep as a whole is wrong: it has a field that does not exist, no points, a cell twice.
    """
    points = [dict(point) for point in sweep.points]
    _check(sweep)
    derived = [*points, *map(dict, sweep.left_out)]
    for derive in sweep.derive:
        before, derived = derived, derive(base, derived)
        for earlier, now in zip(before, derived, strict=True):
            _check_kept(earlier, now)
    cells: list[Cell] = []
    invalid: dict[str, str] = {}
    trained: dict[str, str] = {}
    runs: dict[RunConfig, str] = {}
    for seed in sweep.seeds:  # outside: the whole grid is seen early, and later seeds find their programs compiled
        for point, all_fields in zip(points, derived, strict=False):
            name = name_of({**point, "seed": seed})
            try:
                config = with_fields(base, {**all_fields, "seed": seed})
                run = resolve(config, devices_of(config) if num_devices is None else num_devices)
            except ConfigError as error:
                invalid[name] = str(error)
                continue
            other = runs.setdefault(run, name)
            if other != name:
                raise ValueError(f"{name} and {other} are the same run: leave one of them out")
            same_training = json.dumps({k: v for k, v in flatten(run).items() if not k.startswith(EVALUATION)})
            followed = {field: value for field, value in all_fields.items() if field not in point}
            cells.append(Cell(name, point, followed, run, trained.get(same_training)))
            trained.setdefault(same_training, name)
    _check_same_data(cells)
    return cells, invalid


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
        raise ValueError("the sweep has no points or no seeds: give Sweep at least one of each")
    for point in [*sweep.points, *sweep.left_out]:
        for name in point:
            check_field(name)
        if "seed" in point:
            raise ValueError(
                "seed is swept as a field: give the seeds to Sweep(seeds=...), the report averages over them"
            )
    if sweep.baseline is not None and not any(matches(point, sweep.baseline) for point in sweep.points):
        raise ValueError(f"no point of the sweep has baseline={sweep.baseline}: add it, or name another baseline")
    names = collections.Counter(name_of({**point, "seed": seed}) for point in sweep.points for seed in sweep.seeds)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise ValueError(f"the sweep has the cell {twice[0]} {names[twice[0]]} times: leave the others out")


def _check_kept(earlier: Point, derived: Point) -> None:
    for name, value in earlier.items():
        if derived[name] != value:
            raise ValueError(
                f"{name} is swept or derived, and derived again ({value} becomes {derived[name]}): do one of both"
            )


def _check_same_data(cells: Sequence[Cell]) -> None:
    """Raises ValueError where the cells differ in their data or in how it is cut, since losses would not compare."""
    tasks = sorted({cell.run.task for cell in cells})
    same = [name for task in tasks for name in TERMS[task].same]
    for name in ("task", *same):
        values = {str(flatten(cell.run)[name]) for cell in cells}
        if len(values) > 1:
            raise ValueError(
                f"{name} varies ({', '.join(sorted(values))}), and held-out losses on different data do not compare: "
                "make a sweep of each"
            )


def devices_of(config: ml_collections.ConfigDict) -> int:
    """Devices that the mesh of a config asks for; raises ConfigError where it leaves that open."""
    for axis, size in config.mesh.items():
        if size == -1:
            raise ConfigError(f"mesh.{axis}=-1 leaves open how many devices a cell needs: give a number")
    return math.prod(config.mesh.values())
