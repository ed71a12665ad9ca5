"""Shows in one line of the terminal how far a run is."""

import contextlib
import io
import math
import shutil
import sys
import time
from collections.abc import Callable
from typing import SupportsFloat

from absl import logging

REDRAW_SECONDS = 0.1  # at least this much time between two redraws
AVERAGE_SECONDS = 60  # time constant of the moving average of speed; evaluations and checkpoints count as slow steps
FIRST_LOG_SECONDS, LOG_SECONDS = 5, 30  # until the first line of the log, and between two, where there is no terminal
CLEAR_LINE = "\r\x1b[K"


class Progress:
    """A progress line rewritten in place; where there is no terminal, a line of the log now and then.

    A stream that cannot be written to any more is left alone, since a run outlives the terminal that it began in.

    Args:
        total_steps: the step at which the run ends.
        start_step: the step from which this process continues.
        units_per_step: units of data in a step.
        rate_unit: what stands behind the rate of training: "tokens/s", say.
        stream: where to write; standard error if not given.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int,
        units_per_step: int,
        rate_unit: str,
        stream: io.TextIOBase | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total_steps = total_steps
        self._units_per_step, self._rate_unit = units_per_step, rate_unit
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._clock = clock
        self._line = ""
        self._loss: float | None = None
        self._steps_per_second = 0.0  # 0: not known yet
        self._drawn_step = start_step
        self._drawn_at: float | None = None  # None: not yet, the first step compiles and tells nothing about speed
        self._log_at = math.inf

    def update(self, step: int, loss: SupportsFloat | None = None) -> None:
        """Shows that `step` steps of the run are done, with the last training loss that it was given."""
        now = self._clock()
        self._loss = self._loss if loss is None else float(loss)
        if self._drawn_at is None:
            self._log_at = now + FIRST_LOG_SECONDS
        elif now - self._drawn_at < REDRAW_SECONDS and step < self._total_steps:
            return
        self._measure(step, now)
        if self._terminal:
            self._line = self._text(step)
            self._draw()
        elif now >= self._log_at or step == self._total_steps:
            self._log_at = now + LOG_SECONDS
            logging.info("%s", self._text(step))

    def note(self, text: str) -> None:
        """Prints a line of its own above the progress line."""
        self._write(f"{CLEAR_LINE if self._line else ''}{text}\n")
        self._draw()

    def close(self) -> None:
        """Leaves the last state in the terminal and ends its line."""
        if self._line:
            self._write("\n")
            self._line = ""

    def _text(self, step: int) -> str:
        speed = self._steps_per_second
        left = duration((self._total_steps - step) / speed) if speed else "?"
        loss = "" if self._loss is None else f"loss {self._loss:.4f}  "
        return (
            f"step {step}/{self._total_steps}  {100 * step / max(self._total_steps, 1):.1f}%  {loss}"
            f"{quantity(speed * self._units_per_step) if speed else '?'} {self._rate_unit}  {left} left"
        )

    def _measure(self, step: int, now: float) -> None:
        """Takes the speed since the last redraw into the moving average, weighted by the time it was kept up."""
        steps = step - self._drawn_step
        if self._drawn_at is not None and steps > 0 and now > self._drawn_at:
            seconds = now - self._drawn_at
            past = math.exp(-seconds / AVERAGE_SECONDS) if self._steps_per_second else 0.0
            self._steps_per_second = past * self._steps_per_second + (1 - past) * steps / seconds
        self._drawn_step, self._drawn_at = step, now

    def _draw(self) -> None:
        if self._line:  # cut, since a line that wraps cannot be rewritten
            self._write(CLEAR_LINE + self._line[: shutil.get_terminal_size().columns - 1])

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # the terminal is gone, its disk is full, or it was closed
            self._stream.write(text)
            self._stream.flush()


def quantity(number: float) -> str:
    """Three significant digits with a prefix: 950, 12.3k, 4.56M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def duration(seconds: float | int) -> str:
    """Seconds in their two largest units: 42s, 3m05s, 2h14m, 1d03h."""
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02}h"
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"
