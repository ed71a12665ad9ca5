"""Shows how far a sweep is: in a terminal a live table below a line for every cell that failed, elsewhere a line for
every cell that starts or ends.
"""

import time
from collections import Counter
from collections.abc import Collection, Mapping

from rich.console import Console
from rich.live import Live
from rich.table import Table

from moe_jax.journal.progress import duration, quantity
from moe_jax.journal.reading import newest_values
from moe_jax.sweep.cells import Cell
from moe_jax.sweep.ledger import FAILED, FINISHED, Ledger
from moe_jax.sweep.scheduler import Running, Scheduler
from moe_jax.tasks.results import Result, results_of

REFRESH_SECONDS = 1.0
PATIENCE = 20  # refreshes take one second in so many at most: thousands of cells are drawn less often
ROWS = 30
LEFT = ("cell", "status")
WIDTHS = {"cell": None, "status": 8, "step": 9, "time": 6}  # only the name shrinks
NUMBER_WIDTH = 6
SHORTENED_FROM = 1_000  # numbers from here on, as 12k
STYLES = {FINISHED: "green", FAILED: "red", "running": "cyan"}


class Board:
    """Shows what `scheduler` does, with so many workers. `refresh` may be called as often as one likes."""

    def __init__(self, ledger: Ledger, scheduler: Scheduler, workers: int, console: Console | None = None):
        self._ledger, self._scheduler, self._workers = ledger, scheduler, workers
        self._console = console or Console(stderr=True)
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._told = {cell.name: ledger.status(cell) for cell in ledger.cells}
        self._next = 0.0

    def __enter__(self) -> "Board":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception) -> None:
        self._next = 0.0
        self.refresh()
        if self._live:
            self._live.stop()

    def refresh(self) -> None:
        """Draws anew, at most once in `REFRESH_SECONDS`, and so that it takes little of the time."""
        started = time.monotonic()
        if started < self._next:
            return
        running = {r.cell.name: r for r in self._scheduler.running.values()}
        status = {c.name: "running" if c.name in running else self._ledger.status(c) for c in self._ledger.cells}
        if self._live:
            self._live.update(self.table(status, running), refresh=True)
        self._tell(status, (FAILED,) if self._live else tuple(status.values()))
        now = time.monotonic()
        self._next = now + REFRESH_SECONDS * max(1.0, PATIENCE * (now - started))

    def table(self, status: Mapping[str, str], running: Mapping[str, Running]) -> Table:
        """The cells that run, then those that failed, then the rest, with their newest numbers."""
        table = Table(caption=self._summary(status), caption_justify="left")
        for name in ("cell", "status", "step", *(result.running_header for result in self._shown()), "time"):
            width = WIDTHS.get(name, max(NUMBER_WIDTH, len(name)))
            table.add_column(name, justify="left" if name in LEFT else "right", no_wrap=True, min_width=width)
        order = ("running", FAILED)
        rank = lambda cell: order.index(status[cell.name]) if status[cell.name] in order else len(order)
        cells = sorted(self._ledger.cells, key=rank)
        for cell in cells[:ROWS]:
            table.add_row(
                *self._row(cell, status[cell.name], running.get(cell.name)), style=STYLES.get(status[cell.name])
            )
        return table

    def _row(self, cell: Cell, status: str, running: Running | None) -> list[str]:
        shown = self._shown()
        values = newest_values(self._ledger.workdir_of(cell.name), [result.metric for result in shown])
        return [
            cell.name,
            status,
            f"{int(values.get('step', 0))}/{cell.run.train.steps}",
            *(_number(result, values[result.metric]) if result.metric in values else "" for result in shown),
            duration(time.monotonic() - running.since) if running else "",
        ]

    def _shown(self) -> list[Result]:
        """The results that have a column while their cells run."""
        return [result for result in results_of(self._ledger.task) if result.running_header]

    def _summary(self, status: Mapping[str, str]) -> str:
        counts = Counter(status.values())
        total = ", ".join(f"{counts[name]} {name}" for name in sorted(counts))
        done = [
            self._scheduler.wall_seconds[name] for name, s in status.items() if name in self._scheduler.wall_seconds
        ]
        left = len(status) - counts[FINISHED] - counts[FAILED]
        if not done or not left:
            return total
        return f"{total}; about {duration(left * sum(done) / len(done) / self._workers)} left"

    def _tell(self, status: Mapping[str, str], kinds: Collection[str]) -> None:
        """Prints a line for every cell whose status has become one of `kinds`. It stays above the live table."""
        for cell in self._ledger.cells:
            now = status[cell.name]
            if now == self._told[cell.name]:
                continue
            self._told[cell.name] = now
            if now in kinds:
                detail = f": {self._ledger.error(cell)}" if now == FAILED else ""
                self._print(f"{now}  {cell.name}{detail}")
                if now in (FINISHED, FAILED) and not self._live:
                    self._print(self._summary(status))

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def _number(result: Result, value: int | float) -> str:
    """A number as the result shows it, shortened where it is large, so that it fits its column."""
    return quantity(value) if abs(value) >= SHORTENED_FROM else result.show(value)
