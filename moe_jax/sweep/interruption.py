"""What ends a cell without being its fault: a time limit, a preemption, a reboot. It is tried again and goes on."""

import signal
from pathlib import Path

from moe_jax.train.signals import StopRequest

PATIENCE = 10  # interruptions in a row that leave no new checkpoint, until the cell counts as failed


def is_interruption(code: int) -> bool:
    """Whether an exit code is that of a run that a signal has stopped, checkpointed (128 + its number), or of a process
    that such a signal ended before the run could answer (minus its number).
    """
    return (-code if code < 0 else code - 128) in StopRequest.SIGNALS


def name_of_signal(code: int) -> str:
    """The signal behind the exit code of an interruption, as in "SIGTERM"."""
    return signal.Signals(-code if code < 0 else code - 128).name


def saved_step(workdir: Path) -> int:
    """The step of the newest checkpoint in a work directory; 0 where there is none."""
    try:
        return max((int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal()), default=0)
    except FileNotFoundError:
        return 0


class Patience:
    """Tells a cell that is interrupted now and then from one that gets nowhere."""

    def __init__(self):
        self._step: dict[Path, int] = {}
        self._fruitless: dict[Path, int] = {}

    def goes_on(self, workdir: Path) -> bool:
        """Counts an interruption of the cell in `workdir`; whether it is to be tried again."""
        step = saved_step(workdir)
        moved_on = step > self._step.get(workdir, 0)
        self._step[workdir] = step
        self._fruitless[workdir] = 0 if moved_on else self._fruitless.get(workdir, 0) + 1
        return self._fruitless[workdir] <= PATIENCE
