"""Signals that end a run, as a request that the loop answers between two steps."""

import signal
from types import FrameType


class StopRequest:
    """Context manager: `signal` is the number of the first of `SIGNALS` that was received, else None.

    A second Ctrl-C is not held back: it raises KeyboardInterrupt at once. A signal that the process was started to
    ignore, as nohup does with SIGHUP, stays ignored. SIGUSR1 and SIGUSR2 are how Slurm announces a time limit.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

    def __init__(self):
        self.signal: int | None = None

    def __enter__(self) -> "StopRequest":
        heard = [number for number in self.SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._receive) for number in heard}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or number

    @property
    def exit_code(self) -> int:
        """What a shell expects of a program that a signal ended: 128 + its number; 0 without one."""
        return 128 + self.signal if self.signal else 0
