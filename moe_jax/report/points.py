"""Gathers the cells of a sweep by point. A point is one configuration, and each of its cells has another seed."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from moe_jax.report.records import Record, read_record
from moe_jax.tasks.results import LOSS

STATUSES = ("finished", "failed", "interrupted", "pending")


class CellResult(NamedTuple):
    """How one cell of a sweep ended, if it did."""

    name: str  # "capacity_factor=1.25,num_experts=8,seed=0"
    point: dict[str, Any]  # the swept fields and their values, without the seed: {"moe.num_experts": 8}
    seed: int
    status: str  # finished, failed, interrupted, pending
    error: str  # one line; "" unless failed
    workdir: Path  # of its run


class PointRuns(NamedTuple):
    """The runs of one point."""

    point: dict[str, Any]
    label: str  # its values of the fields that vary: "capacity_factor=1.25, num_experts=8"
    cells: list[CellResult]
    runs: dict[int, Record]  # the finished ones, by seed

    @property
    def losses(self) -> list[float]:
        """Final held-out losses, one for each finished run; NaN where it diverged."""
        return [record.summary[LOSS] for record in self.runs.values()]

    @property
    def comparable(self) -> bool:
        """Whether a run is finished and none diverged. A mean over the others alone would flatter the point."""
        return bool(self.runs) and all(map(math.isfinite, self.losses))


class SweepResults(NamedTuple):
    """All cells of a sweep, and its points in the order of the grid."""

    cells: list[CellResult]
    points: list[PointRuns]
    names: dict[str, str]  # swept field -> its last part, where that names it alone: {"moe.num_experts": "num_experts"}
    varying: list[str]  # swept fields with at least two values

    @property
    def records(self) -> list[Record]:
        """Every finished run."""
        return [record for point in self.points for record in point.runs.values()]

    @property
    def task(self) -> str:
        """What all of them train."""
        return self.records[0].task


def gather(cells: Sequence[CellResult]) -> SweepResults:
    """Reads the finished cells and groups all of them by point; a finished cell that cannot be read counts as failed.

    Raises ValueError where no cell is finished or two have the same point and seed.
    """
    read = [_read(cell) for cell in cells]
    cells = [cell for cell, _ in read]
    if all(record is None for _, record in read):
        errors = [f"{cell.name}: {cell.error}" for cell in cells if cell.error]
        raise ValueError(
            f"no cell of the sweep is finished ({count_statuses(cells)}): run the sweep to its end first"
            + (f"; first failure: {errors[0]}" if errors else "")
        )
    groups: dict[Any, list[tuple[CellResult, Record | None]]] = {}
    for cell, record in read:
        groups.setdefault(frozen(cell.point), []).append((cell, record))
    fields = list(dict.fromkeys(field for cell in cells for field in cell.point))
    varying = [field for field in fields if len({frozen(cell.point.get(field)) for cell in cells}) > 1]
    names = short_names(fields)
    points = [_point(group, {field: names[field] for field in varying}) for group in groups.values()]
    return SweepResults(cells, points, names, varying)


def count_statuses(cells: Sequence[CellResult]) -> str:
    """How many cells have each status, as in "16 finished, 2 failed"."""
    counts = {status: sum(cell.status == status for cell in cells) for status in STATUSES}
    return ", ".join(f"{number} {status}" for status, number in counts.items() if number)


def short_names(fields: Sequence[str]) -> dict[str, str]:
    """Each field's last part, or the whole field where another one ends the same way, as moe.d_ff and model.d_ff do."""
    last = [field.rpartition(".")[2] for field in fields]
    return {field: end if last.count(end) == 1 else field for field, end in zip(fields, last, strict=True)}


def describe(point: dict[str, Any], names: dict[str, str]) -> str:
    """The point's values of the fields in `names`: "capacity_factor=1.25, num_experts=8"."""
    return ", ".join(f"{name}={point.get(field)}" for field, name in names.items())


def frozen(value: Any) -> Any:
    """`value` as a key of a dictionary. Lists become tuples, since JSON gives tuples back as lists."""
    if isinstance(value, dict):
        return frozenset((name, frozen(inner)) for name, inner in value.items())
    return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value


def matches(point: dict[str, Any], part: dict[str, Any]) -> bool:
    """Whether `point` has every field of `part` with its value."""
    return frozen(part) <= frozen(point)


def _read(cell: CellResult) -> tuple[CellResult, Record | None]:
    if cell.status != "finished":
        return cell, None
    try:
        return cell, read_record(cell.workdir)
    except ValueError as error:
        return cell._replace(status="failed", error=str(error)), None


def _point(group: list[tuple[CellResult, Record | None]], names: dict[str, str]) -> PointRuns:
    cells = [cell for cell, _ in group]
    if len({cell.seed for cell in cells}) < len(cells):
        raise ValueError(f"{cells[0].name}: its point is in the sweep twice with the same seed: give each cell its own")
    runs = {cell.seed: record for cell, record in group if record is not None}
    label = describe(cells[0].point, names) or "the only point"
    return PointRuns(cells[0].point, label, cells, dict(sorted(runs.items())))
