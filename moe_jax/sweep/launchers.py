"""Starts cells: as processes on this machine, or as jobs of a cluster through submitit."""

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from moe_jax.config.rules import ConfigError
from moe_jax.sweep.cell_job import STOP, CellJob


@runtime_checkable
class Handle(Protocol):
    """A cell that was started."""

    def poll(self) -> int | None:
        """The exit code (negative: the signal that killed it), or None while it runs."""

    def stop(self) -> None:
        """Asks it to checkpoint and end."""


@runtime_checkable
class Launcher(Protocol):
    """Starts cells. The scheduler gives each worker, 0, 1, ..., one cell at a time."""

    def start(self, workdir: Path, worker: int) -> Handle:
        """Starts the cell in `workdir` on one worker's share of the machine."""


class LocalProcesses:
    """Starts cells as processes of this machine. Worker i has the i-th part of the CPU cores and of the GPUs.

    The processes save a checkpoint and stop when this process dies. Raises ConfigError where the GPUs do not divide.
    """

    def __init__(self, workers: int):
        self._workers = workers
        gpus = visible_gpus(os.environ)
        self._gpus = [share_of_gpus(worker, workers, gpus) for worker in range(workers)]

    def start(self, workdir: Path, worker: int) -> Handle:
        """See `Launcher`; output goes to WORKDIR/log.txt."""
        command = [sys.executable, "-m", "moe_jax.sweep.cell_process", f"--workdir={workdir}", "--stop_with_parent"]
        if cores := share_of_cores(worker, self._workers):
            command.append(f"--cores={','.join(map(str, cores))}")
        with (workdir / "log.txt").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self._gpus[worker]},
                start_new_session=True,  # Ctrl-C comes here alone, and is passed on in order
            )
        return _LocalHandle(process)

    def count_devices(self) -> int:
        """How many JAX devices a cell will have. Another process is asked, so that this one takes none.

        Raises ConfigError where JAX does not start.
        """
        command = [sys.executable, "-c", "import jax; print(jax.device_count())"]
        environment = {**os.environ, **self._gpus[0]}
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if answer.returncode:
            raise ConfigError(f"JAX does not start on this machine: {answer.stderr.strip().splitlines()[-1]}")
        return int(answer.stdout.split()[-1])


class _LocalHandle:
    def __init__(self, process: subprocess.Popen):
        self._process = process

    def poll(self) -> int | None:
        """See `Handle`."""
        return self._process.poll()

    def stop(self) -> None:
        """See `Handle`."""
        self._process.terminate()


LOST = ("TIMEOUT", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "CANCELLED", "REVOKED")  # states that are no cell's fault
TIMEOUTS = 1_000_000  # that submitit may requeue a job after; it counts them, whatever the cell has done in between


class Submitit:
    """Starts cells as jobs of submitit. `cluster` is "slurm", or "local" to try the same path without a cluster.

    Raises ConfigError where submitit or the cluster is missing, or it does not know one of the parameters.
    """

    def __init__(self, cluster: str, directory: Path, parameters: Mapping[str, Any]):
        try:
            import submitit

            self._executor = submitit.AutoExecutor(
                folder=str(directory), cluster=cluster, **{f"{cluster}_max_num_timeout": TIMEOUTS}
            )
        except ImportError:
            raise ConfigError("--slurm needs submitit: pip install 'moe_jax[slurm]'") from None
        except RuntimeError as error:
            raise ConfigError(f"--slurm: {error}") from None
        try:
            self._executor.update_parameters(**parameters)
        except (NameError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"--slurm: {reason}: see submitit's AutoExecutor.update_parameters") from None

    def start(self, workdir: Path, worker: int) -> Handle:
        """See `Launcher`; output goes to the directory given to submitit."""
        (workdir / STOP).unlink(missing_ok=True)
        return _JobHandle(self._executor.submit(CellJob(workdir)), workdir)


class _JobHandle:
    def __init__(self, job: Any, workdir: Path):
        self._job, self._workdir = job, workdir

    def poll(self) -> int | None:
        """See `Handle`; 1 for a job that ended with an exception. One that left no result was interrupted (-15) if the
        cluster says so, or else killed (-9). A job that waits to go on, requeued, still runs.
        """
        from submitit.core.utils import FailedJobError

        if not self._job.done():
            return None
        error = self._job.exception()
        if error is None:
            return self._job.result()
        if isinstance(error, FailedJobError):
            return 1
        return -signal.SIGTERM if self._job.state.upper().startswith(LOST) else -signal.SIGKILL

    def stop(self) -> None:
        """See `Handle`."""
        (self._workdir / STOP).touch()
        self._job.cancel()


def share_of_cores(worker: int, workers: int) -> list[int]:
    """The worker's CPU cores: consecutive ones, and no other worker's where there are enough.

    [] where the system cannot pin a process.
    """
    if not hasattr(os, "sched_getaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < workers:
        return [cores[worker % len(cores)]]
    return cores[worker * len(cores) // workers : (worker + 1) * len(cores) // workers]


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """The NVIDIA GPUs of this machine that a process with this environment sees; none with JAX_PLATFORMS=cpu.

    They are those of CUDA_VISIBLE_DEVICES up to the first -1, as CUDA reads it, or all where the variable is not set.
    """
    if environment.get("JAX_PLATFORMS", "").startswith("cpu"):
        return []
    if "CUDA_VISIBLE_DEVICES" in environment:
        listed = [gpu.strip() for gpu in environment["CUDA_VISIBLE_DEVICES"].split(",")]
        return list(itertools.takewhile(lambda gpu: gpu not in ("", "-1"), listed))
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return []
    return answer.stdout.split() if answer.returncode == 0 else []


def share_of_gpus(worker: int, workers: int, gpus: Sequence[str]) -> dict[str, str]:
    """The environment variable that gives the worker its equal part of the GPUs; {} where there are none.

    Raises ConfigError where the GPUs do not divide over the workers.
    """
    if len(gpus) % workers:
        raise ConfigError(
            f"--processes={workers} does not divide the GPUs of this machine ({', '.join(gpus)}): give a divisor of "
            f"{len(gpus)}, or set JAX_PLATFORMS=cpu"
        )
    size = len(gpus) // workers
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus[worker * size : (worker + 1) * size])} if gpus else {}
