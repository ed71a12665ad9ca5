"""A cell as the job of a cluster: before the time limit or a preemption it saves a checkpoint and is requeued.

Slurm, as submitit asks it to, sends SIGUSR2 (SIGUSR1 in older releases) some time before the limit, and SIGTERM when it
preempts or cancels a job. While the cell trains, the training loop takes these signals, checkpoints, and returns the
number. Only then does submitit requeue the job.
"""

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from absl import logging

from moe_jax.sweep.interruption import is_interruption, saved_step
from moe_jax.sweep.run_cell import run_cell

STOP = "stop"  # a file in the cell's directory: the sweep itself has asked for the end, so the job is not requeued
NOTICES = (signal.SIGUSR1, signal.SIGUSR2)  # submitit requeues the job on one of these
SIGNALS = (signal.SIGTERM, *NOTICES)
Handler = Callable[[int, FrameType | None], Any]


class Interrupted(BaseException):
    """The job ends with this exit code, of a cell that was interrupted. No error, so that none is recorded."""

    def __init__(self, code: int):
        self.code = code


class CellJob:
    """The function that submitit calls in the job; `checkpoint` is what it asks for when it requeues the job.

    The sweep starts a cell anew that ends with the exit code of an interruption, so that code is returned where the job
    cannot be requeued, and where it has saved nothing since it began: then the sweep decides how often to try.
    """

    def __init__(self, workdir: Path):
        self.workdir = workdir

    def __call__(self) -> int:
        """Trains the cell and returns the exit code of `run_cell`; raises what that raises, SystemExit if requeued."""
        requeue = _requeue_of_submitit()
        began = saved_step(self.workdir)

        def receive(number: int, frame: FrameType | None = None) -> None:
            if requeue is not None and not (self.workdir / STOP).exists() and saved_step(self.workdir) > began:
                for other in SIGNALS:  # Slurm ends a requeued job by SIGTERM
                    signal.signal(other, signal.SIG_IGN)
                try:
                    requeue(number, frame)  # ends this process
                except (OSError, subprocess.SubprocessError) as error:
                    logging.warning("The job cannot be requeued (%s): the sweep starts the cell anew", error)
            raise Interrupted(128 + number)

        for number in SIGNALS:
            signal.signal(number, receive)
        try:
            code = run_cell(self.workdir)
            if is_interruption(code):
                receive(code - 128)
            return code
        except Interrupted as interrupted:
            return interrupted.code

    def checkpoint(self) -> Any:
        """The submission that goes on with the cell; the checkpoint itself is on disk already."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(CellJob(self.workdir))


def _requeue_of_submitit() -> Handler | None:
    """What submitit has bound to the signal before a job's end; None outside of its jobs."""
    bound = [handler for number in NOTICES if callable(handler := signal.getsignal(number))]
    return bound[0] if bound else None
