"""Standard input and output as a program may rely on them, whoever started it."""

import os
import sys
from types import TracebackType


def quiet_interrupts() -> None:
    """From here on, Ctrl-C ends the program without a traceback, wherever nobody catches it."""
    show = sys.excepthook

    def show_but_interrupts(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if not _is_interrupt(error):
            show(kind, error, traceback)

    sys.excepthook = show_but_interrupts


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether it is Ctrl-C, or the ImportError that libraries make of it while they are imported."""
    while isinstance(error, ImportError):
        if "KeyboardInterrupt" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return isinstance(error, KeyboardInterrupt)


def prepare() -> None:
    """Makes writing to standard output and error safe.

    A stream that is closed becomes /dev/null, so that no file that is opened later takes its number and gets what is
    meant for the terminal. What the terminal's encoding does not have is written as an escape.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            while (opened := os.open(os.devnull, os.O_RDWR)) < number:  # the lowest that is free
                pass
            if opened > number:
                os.dup2(opened, number)
                os.close(opened)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a test may have put another kind of stream there
            stream.reconfigure(errors="backslashreplace")
