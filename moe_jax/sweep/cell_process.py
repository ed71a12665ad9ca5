"""Runs one cell in a process of its own: `python -m moe_jax.sweep.cell_process --workdir=SWEEP/cells/NAME`."""

import os
import signal
import sys
import threading

from absl import flags

from moe_jax import cli
from moe_jax.sweep.run_cell import run_cell

CORES = flags.DEFINE_list("cores", None, "CPU cores to stay on; default: all.")
STOP_WITH_PARENT = flags.DEFINE_bool("stop_with_parent", False, "Checkpoint and stop once standard input ends.")


def main() -> int:
    """Prepares the process as its flags say, then runs the cell; returns the exit code."""
    if STOP_WITH_PARENT.value:
        threading.Thread(target=_stop_with_parent, daemon=True).start()
    if CORES.value:
        os.sched_setaffinity(0, {int(core) for core in CORES.value})  # before JAX starts its threads
    return run_cell(cli.workdir())


def _stop_with_parent() -> None:
    """Waits for the end of standard input. The parent holds the other end, so it comes even when SIGKILL ends that."""
    os.read(sys.stdin.fileno(), 1)  # not sys.stdin.read: at exit the interpreter would find its lock taken, and abort
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    cli.define_workdir_flag()
    cli.main(main)
