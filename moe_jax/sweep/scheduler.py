"""Decides which cell runs when: a queue, a number of workers, and what happens when a cell ends.

A worker runs one cell at a time, on its own share of the machine or as one job of a cluster.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from moe_jax.sweep.cells import Cell
from moe_jax.sweep.interruption import PATIENCE, Patience, is_interruption, name_of_signal
from moe_jax.sweep.launchers import Handle, Launcher
from moe_jax.sweep.ledger import FAILED, FINISHED, Ledger
from moe_jax.train.signals import StopRequest

POLL_SECONDS = 0.2


class Running(NamedTuple):
    """A cell that a worker runs."""

    cell: Cell
    handle: Handle
    since: float  # time.monotonic()


class Scheduler:
    """Runs cells, each until it is finished or has failed.

    A cell that was interrupted (a time limit, a preemption) is started again as often as it takes, if it gets on. One
    that was killed (out of memory) is, up to `retries` times. One that raised an error is not. A cell with a twin waits
    for it, and fails with it.
    """

    def __init__(self, ledger: Ledger, launcher: Launcher, workers: int, retries: int):
        self._ledger, self._launcher, self._retries = ledger, launcher, retries
        self._free = list(range(workers))
        self._kills: dict[str, int] = {}
        self._patience = Patience()
        self._by_name = {cell.name: cell for cell in ledger.cells}
        self.running: dict[int, Running] = {}
        self.wall_seconds: dict[str, float] = {}  # by cell, all attempts of this start

    def run(self, cells: Sequence[Cell], stop: StopRequest, watch: Callable[[], None]) -> None:
        """Runs the `cells` that are not finished, and calls `watch` several times a second.

        On a stop request it asks the running ones to save a checkpoint, and waits for them.
        """
        waiting = [cell for cell in cells if self._ledger.status(cell) != FINISHED]
        for cell in waiting:
            self._ledger.forget_failure(cell)
        asked = False
        while self.running or (waiting and not stop.signal):
            if stop.signal and not asked:
                asked = True
                for running in self.running.values():
                    running.handle.stop()
            while self._free and not stop.signal and (startable := self._next(waiting)):
                waiting.remove(startable)
                self._start(startable)
            watch()
            time.sleep(POLL_SECONDS)
            for worker, running in list(self.running.items()):
                code = running.handle.poll()
                if code is not None:
                    waiting += self._ended(worker, running, code, retry=not asked)
                    self._ledger.write_csv()
        watch()

    def _next(self, waiting: list[Cell]) -> Cell | None:
        """The first cell that can start now, if there is one. A cell whose twin failed fails, and leaves the queue."""
        busy = {running.cell.name for running in self.running.values()} | {cell.name for cell in waiting}
        for cell in list(waiting):
            twin = None if cell.twin is None else self._by_name[cell.twin]
            if twin is None or self._ledger.status(twin) == FINISHED:
                return cell
            if twin.name not in busy:
                self._ledger.fail(cell, f"{twin.name}, which trains the same, did not finish")
                waiting.remove(cell)
        return None

    def _start(self, cell: Cell) -> None:
        worker = self._free.pop(0)
        try:
            handle = self._launcher.start(self._ledger.workdir_of(cell.name), worker)
        except Exception as error:  # the system or submitit refuses: the other cells go on
            self._free.append(worker)
            self._ledger.fail(cell, f"could not be started: {error}")
            return
        self.running[worker] = Running(cell, handle, time.monotonic())

    def _ended(self, worker: int, running: Running, code: int, retry: bool) -> list[Cell]:
        """Frees the worker and records the end; returns the cell if it is to be tried again."""
        del self.running[worker]
        self._free.append(worker)
        cell = running.cell
        seconds = time.monotonic() - running.since
        self.wall_seconds[cell.name] = self.wall_seconds.get(cell.name, 0.0) + seconds
        self._ledger.add_wall_seconds(cell, seconds)
        interrupted, killed = is_interruption(code), code < 0
        if self._ledger.status(cell) in (FINISHED, FAILED) or ((interrupted or killed) and not retry):
            return []
        if interrupted:
            if self._patience.goes_on(self._ledger.workdir_of(cell.name)):
                return [cell]
            reason = f"interrupted {PATIENCE + 1} times ({name_of_signal(code)}) without a new checkpoint"
        elif killed:
            self._kills[cell.name] = self._kills.get(cell.name, 0) + 1
            if self._kills[cell.name] <= self._retries:
                return [cell]
            reason = f"killed by signal {-code} (9: often out of memory)"
        else:
            reason = f"ended with exit code {code}"
        self._ledger.fail(cell, f"{reason}: its log has more; start the sweep again to go on with it")
        return []
