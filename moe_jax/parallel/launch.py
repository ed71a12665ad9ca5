"""Starts the processes of one run on this machine, and ends them together."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import IO

from moe_jax.config.rules import ConfigError
from moe_jax.parallel.processes import COORDINATOR, NUM_PROCESSES, PROCESS_ID
from moe_jax.parallel.supervisor import NOISE, PASSED_ON

GRACE_SECONDS = 120.0  # for the others to notice by themselves, after one has failed
POLL_SECONDS = 0.1
PROCESS_BYTES = 256 << 20  # of Python with JAX


def launch(command: Sequence[str], processes: int, devices: int = 0) -> int:
    """Runs `python command...` so many times, told of each other by the environment, and returns the worst exit code.

    With `devices` each has so many CPU devices. Their output comes line by line, with the number of the process in
    front. Signals are passed on to all. When one has failed, the others have `GRACE_SECONDS` to end, and are ended.
    """
    if not command:
        raise ConfigError("no script: write it behind --, as in `-- experiments/train.py --config=... --workdir=...`")
    if processes < 1:
        raise ConfigError(f"--processes={processes}: give how many are to run, as in --processes=2")
    most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // PROCESS_BYTES
    if processes > most:
        raise ConfigError(
            f"--processes={processes} take {PROCESS_BYTES >> 20} MB each at least, and this machine has memory for "
            f"{most}: give fewer"
        )
    coordinator = f"localhost:{_free_port()}"
    started: list[subprocess.Popen] = []
    asked: list[int] = []  # signals that came

    def pass_on(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        for process in started:
            if process.poll() is None:
                process.send_signal(number)

    for passed_on in PASSED_ON:
        signal.signal(passed_on, pass_on)
    for number in range(processes):
        if asked:  # too early for a process to know what to do: none of them has begun
            for process in started:
                process.kill()
            return 128 + asked[0]
        started.append(_start(command, coordinator, processes, number, devices))
    speakers = [
        threading.Thread(target=_with_number, args=(stream, out, number))
        for number, process in enumerate(started)
        for stream, out in ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
    ]
    for speaker in speakers:
        speaker.start()
    _wait(started)
    for speaker in speakers:
        speaker.join()
    return max((_exit_code(process.returncode) for process in started), default=0)


def _start(command: Sequence[str], coordinator: str, processes: int, number: int, devices: int) -> subprocess.Popen:
    told = {COORDINATOR: coordinator, NUM_PROCESSES: str(processes), PROCESS_ID: str(number)}
    environment = os.environ | told
    if devices:
        flags = environment.get("XLA_FLAGS", "")
        environment["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={devices}".strip()
        environment["JAX_PLATFORMS"] = "cpu"
    return subprocess.Popen(
        [sys.executable, *command],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def _with_number(stream: IO[bytes], out: IO[str], number: int) -> None:
    for line in stream:
        for part in line.decode(errors="replace").rstrip("\n").split("\r"):  # a progress line is written over
            if part.strip() and not NOISE.search(part.encode()):
                print(f"[{number}] {part}", file=out, flush=True)


def _wait(started: Sequence[subprocess.Popen]) -> None:
    failed_at: float | None = None
    while any(process.poll() is None for process in started):
        if failed_at is None and any(process.poll() not in (None, 0) for process in started):
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() - failed_at > GRACE_SECONDS:
            for process in started:
                process.kill()
        time.sleep(POLL_SECONDS)


def _exit_code(code: int) -> int:
    """As a shell counts: 128 + the number of the signal that ended a process."""
    return code if code >= 0 else 128 - code
