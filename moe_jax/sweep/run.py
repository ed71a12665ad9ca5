"""Runs a sweep from its first cell to its report."""

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import ml_collections
from absl import logging

from moe_jax.config.rules import ConfigError
from moe_jax.config.schema import DataConfig
from moe_jax.files.lock import is_held, locked
from moe_jax.journal.workdir import make_writable
from moe_jax.report.sweep import write_report
from moe_jax.sweep.board import Board
from moe_jax.sweep.cells import Cell, make_cells
from moe_jax.sweep.derive import with_fields
from moe_jax.sweep.design import Sweep, narrowed
from moe_jax.sweep.launchers import Launcher
from moe_jax.sweep.ledger import FINISHED, Ledger
from moe_jax.sweep.predict import section
from moe_jax.sweep.scheduler import Scheduler
from moe_jax.train.signals import StopRequest

SMOKE_CELLS = 4
SMOKE = {
    "train.steps": 20, "train.warmup_steps": 5, "train.decay_steps": 5, "eval.every": 10, "eval.batches": 1,
    "log.every": 5, "checkpoint.every": 10, "data.source": DataConfig().source, "data.weights": (),
    "data.max_bytes": 1_000_000,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Shard:
    """One job of a job array: it runs every `count`-th cell, from the `index`-th on."""

    index: int = 0
    count: int = 1

    def of(self, cells: Sequence[Cell]) -> list[Cell]:
        """This shard's cells; twins stay together."""
        firsts = [cell.name for cell in cells if cell.twin is None]
        own = set(firsts[self.index :: self.count])
        return [cell for cell in cells if (cell.twin or cell.name) in own]


def checked_cells(sweep: Sweep, base: ml_collections.ConfigDict, num_devices: int | None) -> list[Cell]:
    """The sweep's cells. Logs every cell that cannot run, and raises ConfigError if there is one."""
    cells, invalid = make_cells(sweep, base, num_devices)
    if invalid:
        for name, why in invalid.items():
            logging.error("%s: %s", name, why)
        first = next(iter(invalid))
        raise ConfigError(
            f"{len(invalid)} of {len(cells) + len(invalid)} cells cannot run, and none was started. {first}: "
            f"{invalid[first]}"
        )
    for field in dict.fromkeys(field for cell in cells for field in cell.derived):
        values = dict.fromkeys(str(cell.derived[field]) for cell in cells if field in cell.derived)
        logging.info("Derived, whatever the config says: %s=%s", field, ", ".join(values))
    return cells


def smoke(
    sweep: Sweep, base: ml_collections.ConfigDict, given: Collection[str] = ()
) -> tuple[Sweep, ml_collections.ConfigDict]:
    """A small sweep that shows whether all of it runs: at least four of its cells, 20 steps each, on data at hand.

    Fields that are swept, or `given` on the command line, stay as they are.
    """
    kept = {name for point in sweep.points for name in point}.union(given)
    base = with_fields(base, {name: value for name, value in SMOKE.items() if name not in kept})
    count = min(SMOKE_CELLS, len(sweep.points))
    spread = [sweep.points[i * (len(sweep.points) - 1) // max(count - 1, 1)] for i in range(count)]
    seeds = range(-(-SMOKE_CELLS // count))
    return dataclasses.replace(narrowed(sweep, spread), seeds=tuple(seeds)), base


def run_sweep(
    ledger: Ledger,
    launcher: Launcher,
    workers: int,
    *,
    shard: Shard = Shard(),
    retries: int = 1,
    add_cells: bool = False,
) -> int:
    """Runs this shard's cells, `workers` at a time.

    Returns the exit code: 0, 1 if a cell failed, or 128 + the number of the signal that ended it early. Raises
    ConfigError where the work directory holds another sweep, or one that runs.
    """
    with _only_one(ledger, shard), StopRequest() as stop:
        ledger.open(add_cells)
        own = shard.of(ledger.cells)
        scheduler = Scheduler(ledger, launcher, workers, retries)
        with Board(ledger, scheduler, workers) as board:
            scheduler.run(own, stop, board.refresh)
        ledger.write_csv()
    if stop.signal:
        logging.warning("Stopped by signal %d; the same command continues", stop.signal)
        return stop.exit_code
    return int(any(ledger.status(cell) != FINISHED for cell in own))


def report(ledger: Ledger, title: str, baseline: dict | None) -> Path:
    """Writes the report of the cells that are finished; raises ConfigError where none is."""
    with locked(ledger.workdir / "report.lock"):  # shards may end at the same time
        path = write_report(ledger.workdir, title, ledger.results(), baseline, section(ledger.workdir))
    logging.info("Report: %s", path)
    return path


@contextlib.contextmanager
def _only_one(ledger: Ledger, shard: Shard) -> Iterator[None]:
    """Keeps other processes from running cells here, except for other shards of as many."""
    make_writable(ledger.workdir)
    whole = shard.count == 1
    try:
        for lock in ledger.workdir.glob("shard_*.lock"):
            if not lock.stem.endswith(f"_of_{shard.count}") and is_held(lock):
                raise BlockingIOError(f"{lock.stem}: a directory has shards of one count")
        with (
            locked(ledger.workdir / "sweep.lock", shared=not whole, wait=False),
            locked(ledger.workdir / f"shard_{shard.index}_of_{shard.count}.lock", wait=False),
        ):
            yield
    except BlockingIOError as held:
        raise ConfigError(
            f"--workdir={ledger.workdir}: another sweep runs here ({held or 'a shard'}): wait for it, or choose "
            "another directory"
        ) from None
