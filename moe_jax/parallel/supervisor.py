"""A parent that stands between a process of several and whoever started it.

When the coordination service goes, with the process that had it, JAX ends the others by abort(), with kilobytes of text
and no chance to say a word. So the work is done in a child: its parent passes signals on, leaves that text out, and has
the last word.
"""

import contextlib
import functools
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

from moe_jax.parallel.processes import LOST

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# What XLA logs of other processes that end, and of gloo's connections; absl's lines have a level, a date and a file.
NOISE = re.compile(
    rb"^[EFIW]\d{4} (?=.*(coordination|distributed|client\.h|pjrt|recoverable))\S+ +\d+ \S+\.(cc|h):\d+\]|^\[Gloo\]"
)
COORDINATOR_GONE = (
    "process 0, which coordinates the others, ended or was lost: the same command goes on from the newest checkpoint"
)
BEGINNING = re.compile(rb"^([EFIW]\d{4} |error: |\[|\S+\.py|Traceback )")


def fork_worker(not_joined: str) -> Callable[[], object]:
    """Returns in a child, which is to do the work; the parent ends with the child's exit code.

    Call it before JAX has started a backend. A child that was aborted counts as `LOST`: since its coordinator is gone,
    or, if it has not called what this returns, since it did not find the others, of which `not_joined` tells. By
    which other signal a child was ended is said.
    """
    reads, writes = os.pipe()
    joined, joins = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reads)
        os.setpgid(0, 0)  # so that Ctrl-C reaches it once, through its parent
        os.dup2(writes, 2)
        os.close(writes)
        os.close(joined)
        return functools.partial(os.write, joins, b"1")
    os.close(writes)
    os.close(joins)

    def pass_on(number: int, frame: FrameType | None) -> None:
        os.kill(child, number)

    for number in PASSED_ON:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, pass_on)
    speaks = threading.Thread(target=_without_noise, args=(reads,))
    speaks.start()
    _, status = os.waitpid(child, 0)
    speaks.join()
    os._exit(_exit_code(status, bool(os.read(joined, 1)), not_joined))


def _without_noise(reads: int) -> None:
    """Copies a pipe to stderr until its end, without `NOISE` and what follows it."""
    silent = False
    with os.fdopen(reads, "rb", buffering=0) as pipe:
        rest = b""
        while block := pipe.read(65536):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                silent = bool(NOISE.search(line)) or (silent and not BEGINNING.search(line))
                if not silent:
                    _say(line + b"\n")
            if rest and not silent and not NOISE.search(rest):  # a progress line has no end
                _say(rest)
                rest = b""
        _say(rest if rest and not silent and not NOISE.search(rest) else b"")


def _say(text: bytes) -> None:
    with contextlib.suppress(OSError):  # nobody may be listening
        os.write(2, text)


def _exit_code(status: int, joined: bool, not_joined: str) -> int:
    if not os.WIFSIGNALED(status):
        return os.WEXITSTATUS(status)
    number = os.WTERMSIG(status)
    if number == signal.SIGABRT or (number == signal.SIGSEGV and not joined):
        _say(f"error: {COORDINATOR_GONE if joined else not_joined}\n".encode())
        return LOST
    _say(f"error: this process was ended by signal {number} ({signal.strsignal(number)})\n".encode())
    return 128 + number
