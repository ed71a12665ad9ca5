"""Time spent on training steps, without evaluation and checkpoints."""

import contextlib
import time
from collections.abc import Iterator

import jax
from jaxtyping import PyTree


class Clock:
    """Steps run asynchronously: read the clock only after having waited for a step's result."""

    def __init__(self, units_per_step: int, first_step: int):
        self.units_per_step = units_per_step
        self.seconds = 0.0  # of all laps
        self._first_step = self._lap_step = first_step
        self._lap_start = time.perf_counter()

    def lap(self, step: int) -> float:
        """Ends a lap at `step`; units of data per second within it."""
        now = time.perf_counter()
        seconds = now - self._lap_start
        rate = (step - self._lap_step) * self.units_per_step / seconds
        self.seconds += seconds
        self._lap_step, self._lap_start = step, now
        return rate

    def units_per_second(self) -> float:
        """Over all laps; 0 before the first."""
        return (self._lap_step - self._first_step) * self.units_per_step / self.seconds if self.seconds else 0.0

    @contextlib.contextmanager
    def paused(self, pending: PyTree) -> Iterator[None]:
        """Does not count the time inside; waits first for `pending`, the work that was started before."""
        jax.block_until_ready(pending)
        start = time.perf_counter()
        yield
        self._lap_start += time.perf_counter() - start
