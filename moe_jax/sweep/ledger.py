"""The files of a sweep's work directory: which cells it has, which are done, and with what results.

    sweep.json            the cells and their configurations, written once
    sweep.csv             one row a cell, rewritten whole whenever one ends
    report.md, *.png      see moe_jax/report/sweep.py
    compiled/             compiled programs, shared by the cells
    cells/NAME/           a work directory as train.py makes it, with cell.json (what it is), wall_seconds.json,
                          log.txt and, of a failed cell, failure.json

What a cell's status is follows from the files in its own work directory, so that a process that dies between two writes
loses nothing.
"""

import contextlib
import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moe_jax.config.rules import ConfigError
from moe_jax.config.schema import RunConfig, flatten
from moe_jax.files.lock import locked
from moe_jax.journal.reading import CONFIG, read_summary
from moe_jax.journal.workdir import is_finished, make_writable, write_json
from moe_jax.report.points import CellResult
from moe_jax.sweep import failure
from moe_jax.sweep.cells import Cell
from moe_jax.tasks.results import columns

FINISHED, FAILED, INTERRUPTED, PENDING = "finished", "failed", "interrupted", "pending"
SWEEP = "sweep.json"
CELL = "cell.json"
WALL = "wall_seconds.json"
FREE_TO_CHANGE = ("log.", "checkpoint.", "mesh.", "data.cache_dir")  # between two starts of a sweep


class Ledger:
    """The work directory of one sweep."""

    def __init__(self, workdir: Path, cells: Sequence[Cell]):
        self.workdir, self.cells = workdir, list(cells)
        self._rows: dict[str, dict[str, Any]] = {}  # of sweep.csv, for the cells that were seen finished: they stay so

    @property
    def task(self) -> str:
        """What its cells train."""
        return self.cells[0].run.task

    def workdir_of(self, name: str) -> Path:
        """The work directory of the cell of that name."""
        return self.workdir / "cells" / name

    def open(self, add_cells: bool) -> None:
        """Makes the work directory this sweep's, or checks that it is. Raises ConfigError where it is another one's."""
        make_writable(self.workdir)
        with locked(self.workdir / "sweep.json.lock"):  # shards start at the same time
            self._open(add_cells)

    def check(self) -> None:
        """Raises ConfigError where the directory holds no sweep, or another one."""
        if not (self.workdir / SWEEP).exists():
            raise ConfigError(f"--workdir={self.workdir} holds no sweep, and no finished cell: run the sweep first")
        self._check(self._before())

    def _before(self) -> dict[str, Any]:
        path = self.workdir / SWEEP
        try:
            before = dict(json.loads(path.read_text()))
            if not all(isinstance(fields, dict) for fields in before.values()):
                raise ValueError("a cell has no fields")
            return before
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path} cannot be read ({error}): put it back, or choose another --workdir") from None

    def _check(self, before: Mapping[str, Mapping]) -> None:
        differing = _differences(before, {cell.name: cell.fields() for cell in self.cells})
        if differing:
            raise ConfigError(
                f"--workdir={self.workdir} holds another sweep ({'; '.join(differing)}): choose another directory, "
                "or set the grid back"
            )

    def _open(self, add_cells: bool) -> None:
        if (self.workdir / SWEEP).exists():
            before = self._before()
            self._check(before)
            added = sorted({cell.name for cell in self.cells} - before.keys())
            if added and not add_cells:
                raise ConfigError(
                    f"--workdir={self.workdir} holds a smaller sweep, without {_listed(added)}: run with --add_cells "
                    "to add them"
                )
        written = {cell.name: json.dumps(flatten(cell.run)) for cell in self.cells}
        lines = (f"{json.dumps(name)}: {fields}" for name, fields in written.items())
        _write(self.workdir / SWEEP, "{\n" + ",\n".join(lines) + "\n}\n")
        for cell in self.cells:
            self.workdir_of(cell.name).mkdir(parents=True, exist_ok=True)
            text = f'{{"fields": {written[cell.name]}, "twin": {json.dumps(cell.twin)}}}\n'
            _write(self.workdir_of(cell.name) / CELL, text)

    def status(self, cell: Cell) -> str:
        """Whether the cell is finished, failed, interrupted or pending, from its files alone."""
        if cell.name in self._rows:
            return FINISHED
        workdir = self.workdir_of(cell.name)
        if is_finished(workdir, cell.run.train.steps):
            return FINISHED
        if failure.is_recorded(workdir):
            return FAILED
        return INTERRUPTED if (workdir / CONFIG).exists() else PENDING

    def error(self, cell: Cell) -> str:
        """Why the cell failed; "" where it did not."""
        try:
            return failure.read(self.workdir_of(cell.name)) if self.status(cell) == FAILED else ""
        except FileNotFoundError:  # another shard has just started it again
            return ""

    def fail(self, cell: Cell, error: str) -> None:
        """Records that the cell failed, where its own process could not."""
        failure.record(self.workdir_of(cell.name), cell.fields(), error)

    def forget_failure(self, cell: Cell) -> None:
        """Removes the record of a failure, so that the cell is tried again."""
        failure.forget(self.workdir_of(cell.name))

    def results(self) -> list[CellResult]:
        """How all cells ended, for the report."""
        return [
            CellResult(c.name, c.point, c.run.seed, self.status(c), self.error(c), self.workdir_of(c.name))
            for c in self.cells
        ]

    def add_wall_seconds(self, cell: Cell, seconds: float) -> None:
        """Adds the seconds of one attempt, from the start of its process to its end."""
        write_json(self.workdir_of(cell.name) / WALL, {"seconds": (self.wall_seconds(cell) or 0.0) + seconds})

    def wall_seconds(self, cell: Cell) -> float | None:
        """The seconds of all attempts whose end a sweep has seen, in this start and earlier ones; None if unknown."""
        try:
            return float(json.loads((self.workdir_of(cell.name) / WALL).read_text())["seconds"])
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def write_csv(self) -> None:
        """Writes sweep.csv anew, with a row for every cell that ended, whichever shard ran it."""
        with locked(self.workdir / "sweep.csv.lock"):
            path = self.workdir / "sweep.csv"
            fields = list(dict.fromkeys(name for cell in self.cells for name in cell.point))
            header = ["cell", *fields, "seed", "status", "error", *columns(self.task), "wall_seconds"]
            draft = path.with_suffix(".csv.partial")
            with draft.open("w", newline="") as file:
                writer = csv.DictWriter(file, header)
                writer.writeheader()
                for cell in self.cells:
                    if self.status(cell) in (FINISHED, FAILED):
                        writer.writerow(self._row(cell))
            os.replace(draft, path)

    def _row(self, cell: Cell) -> dict[str, Any]:
        if cell.name in self._rows:
            return self._rows[cell.name]
        status = self.status(cell)
        row = {"cell": cell.name, **cell.point, "seed": cell.run.seed, "status": status, "error": self.error(cell)}
        row["wall_seconds"] = self.wall_seconds(cell)
        if status == FINISHED:
            summary = read_summary(self.workdir_of(cell.name))
            row |= {name: _empty_if_nan(summary.get(name)) for name in columns(self.task)}
            self._rows[cell.name] = row
        return row


def _write(path: Path, text: str) -> None:
    """Makes `text` the content of the file, whole or not at all; a file that has it already stays as it is."""
    with contextlib.suppress(OSError, ValueError):
        if path.read_text() == text:
            return
    draft = path.with_name(f"{path.name}.partial")
    draft.write_text(text)
    os.replace(draft, path)


def _empty_if_nan(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _differences(before: Mapping[str, Mapping], now: Mapping[str, Mapping]) -> list[str]:
    """One text for each field that has changed, and one for the cells that are gone."""
    changed: dict[str, str] = {}
    # A field that sweep.json lacks is younger than the sweep: its default means what the code did before it was there.
    defaults = json.loads(json.dumps(flatten(RunConfig())))
    for name in (name for name in now if name in before):
        earlier = defaults | before[name]
        for field, value in now[name].items():
            if earlier[field] != value and not field.startswith(FREE_TO_CHANGE):
                changed.setdefault(field, f"{field} was {earlier[field]!r}, is {value!r} in {name}")
    gone = sorted(before.keys() - now.keys())
    return list(changed.values()) + ([f"gone: {_listed(gone)}"] if gone else [])


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
