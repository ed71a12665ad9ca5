"""Standard input and output as a program may rely on them, whoever started it."""

import os
import signal
import sys
from types import FrameType, TracebackType


def quiet_interrupts() -> None:
    """From here on, Ctrl-C ends the program without a traceback, wherever nobody catches it."""
    show = sys.excepthook
    came: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.default_int_handler(number, frame)

    def show_but_interrupts(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        # Libraries turn a Ctrl-C into an ImportError, which may not even say so, while they are imported.
        if isinstance(error, ImportError) and came:
            os._exit(128 + signal.SIGINT)
        if not isinstance(error, KeyboardInterrupt):
            show(kind, error, traceback)

    sys.excepthook = show_but_interrupts
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)


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
