"""How far a long pass over the documents is: a bar in a terminal, and a line now and then elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator

from absl import logging
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

LINE_SECONDS = 30.0
REDRAW_SECONDS = 0.2


@contextlib.contextmanager
def progress(what: str, total_bytes: int | None = None) -> Iterator[Callable[[int], None]]:
    """Yields a function that is told how many bytes of text have been done since it was called last.

    `total_bytes` is None where it is not known how many there are.
    """
    console = Console(stderr=True)
    bar = Progress(
        TextColumn(what), BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=console, transient=True
    )
    task = bar.add_task(what, total=total_bytes)
    done, shown = 0, time.monotonic()

    def advance(size: int) -> None:
        nonlocal done, shown
        done += size
        now = time.monotonic()
        if console.is_terminal and now > shown + REDRAW_SECONDS:
            bar.update(task, completed=done)
            shown = now
        elif not console.is_terminal and now > shown + LINE_SECONDS:
            of = "" if total_bytes is None else f" of {total_bytes / 1e6:,.0f}"
            logging.info("%s: %.0f%s MB", what, done / 1e6, of)
            shown = now

    with bar if console.is_terminal else contextlib.nullcontext():
        yield advance
