"""Several processes that train one run together: how they find each other, agree, and notice that one is lost.

JAX's coordination service, in the process with the number 0, is all that they need beside the collectives of the
program: what is agreed on are entries of its key-value store. `moe_jax/parallel/supervisor.py` is what turns the end of
that service into one line.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from absl import logging
from jax._src import distributed  # the key-value store has no public name

from moe_jax.config.rules import ConfigError, MachineError

# Set by experiments/launch_local.py, and by whoever starts processes without flags.
COORDINATOR, NUM_PROCESSES, PROCESS_ID = ("MOE_JAX_COORDINATOR", "MOE_JAX_NUM_PROCESSES", "MOE_JAX_PROCESS_ID")
LOST = 3  # exit code of a process that has lost another one: the machine's fault
WATCH_SECONDS = 1.0
ENDED = "moe_jax/ended"  # key of what a process said before it ended early
DONE, GONE = "moe_jax/done", "gone"  # keys of the processes that have ended in order; their value after `end_with`
LEAVE_SECONDS = 10

_leaving, _told = threading.Event(), threading.Event()


class Cluster(NamedTuple):
    """How this process joins the others; without a coordinator the environment says (Slurm, Open MPI, Kubernetes, Cloud
    TPU), as far as JAX knows it.
    """

    coordinator: str = ""  # host:port of process 0
    num_processes: int = 0
    process_id: int = -1
    start_seconds: int = 300  # to wait for all processes at the start
    lost_seconds: int = 60  # without a sign of life, after which a process is lost


def join(cluster: Cluster) -> None:
    """Starts JAX as one of several processes, before anything else uses it, and watches the others from here on.

    Raises ConfigError for numbers that do not fit, and MachineError, in one line, where the coordinator or a process
    does not come in time, or where this is process 0 and its port is taken.
    """
    _check(cluster)
    if cluster.coordinator and cluster.process_id == 0:
        _check_port(cluster.coordinator)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # signals are ours: see `Agreement`
    jax.config.update(
        "jax_enable_recoverability", True
    )  # a lost process is noticed here, and does not abort the others
    given: dict[str, Any] = {}
    if cluster.coordinator:
        given = dict(
            coordinator_address=cluster.coordinator,
            num_processes=cluster.num_processes,
            process_id=cluster.process_id,
            cluster_detection_method="deactivate",
        )
    try:
        jax.distributed.initialize(
            **given,
            initialization_timeout=cluster.start_seconds,
            heartbeat_timeout_seconds=cluster.lost_seconds,
        )
    except (jax.errors.JaxRuntimeError, RuntimeError) as error:
        reason = "" if "DEADLINE" in str(error) or "UNAVAILABLE" in str(error) else f" ({error})"
        raise MachineError(f"{nobody_came(cluster)}{reason}") from None
    except ValueError as error:
        raise ConfigError(
            f"--distributed=True: the environment does not say which processes there are ({error}): give "
            "--coordinator, --num_processes and --process_id"
        ) from None
    threading.Thread(target=_watch, args=(jax.process_count(),), daemon=True).start()
    logging.info("Process %d of %d", jax.process_index(), jax.process_count())
    if jax.process_index():
        logging.set_verbosity(logging.WARNING)  # the first speaks for all


def is_one_of_several() -> bool:
    """Whether `join` has made this process one of several."""
    return _client() is not None


def tell_others(code: int) -> None:
    """Says, before this process ends early, with what exit code: the others end with it too."""
    if (client := _client()) is not None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            client.key_value_set(ENDED, f"{jax.process_index()} {code}", allow_overwrite=True)
            _told.set()


def wait_for_the_watch(lost_seconds: float) -> None:
    """Where the others cannot be reached: until the watch has found who is lost, and ended this process, or for as long
    as a process may give no sign of life.
    """
    time.sleep(lost_seconds + 2 * WATCH_SECONDS)


def leave() -> None:
    """Ends the company of the others, where there are any: all wait for each other, the coordinator for all. Who does
    not come in `LEAVE_SECONDS` is not waited for, and does not take those who have gone for lost: they said so.
    """
    client = _client()
    if client is None:
        return
    _leaving.set()
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        if not _told.is_set():
            client.key_value_set(f"{DONE}/{jax.process_index()}", "1")
            client.wait_at_barrier("moe_jax/end", 1000 * LEAVE_SECONDS)
        if _told.is_set() or jax.process_index() == 0:
            _wait_for_the_last(client)
    with contextlib.suppress(jax.errors.JaxRuntimeError, RuntimeError):
        jax.distributed.shutdown()


def _wait_for_the_last(client: Any) -> None:
    """Until the others are gone, or for `LEAVE_SECONDS`: who asks for live nodes waits for all others to ask, or to
    leave in order, and those that `end_with` ended do neither.
    """
    everyone = list(range(jax.process_count()))
    live = set(everyone) - {jax.process_index()}

    def look() -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            while live:
                live.intersection_update(set(client.get_live_nodes(everyone)) - {jax.process_index()})
                time.sleep(0.05)

    threading.Thread(target=look, daemon=True).start()
    until = time.monotonic() + LEAVE_SECONDS
    while time.monotonic() < until and any(_try_get(client, f"{DONE}/{process}") != GONE for process in list(live)):
        time.sleep(0.05)


def _check(cluster: Cluster) -> None:
    if not cluster.coordinator:
        return
    if cluster.num_processes < 1:
        raise ConfigError(
            f"--coordinator={cluster.coordinator} with --num_processes={cluster.num_processes}: give both"
        )
    if not 0 <= cluster.process_id < cluster.num_processes:
        raise ConfigError(
            f"--process_id={cluster.process_id} is none of --num_processes={cluster.num_processes}: count from 0 to "
            f"{cluster.num_processes - 1}"
        )
    host, _, port = cluster.coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigError(f"--coordinator={cluster.coordinator} is no host:port: give that of process 0")


def _check_port(coordinator: str) -> None:
    """Raises MachineError where nobody can listen on the coordinator's port: gRPC would end by a signal."""
    port = int(coordinator.rpartition(":")[2])
    both = socket.has_dualstack_ipv6()
    try:
        socket.create_server(
            ("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both
        ).close()
    except OSError as error:
        raise MachineError(
            f"--coordinator={coordinator}: this machine's port {port} cannot be had ({error.strerror}): give a free one"
        ) from None


def nobody_came(cluster: Cluster) -> str:
    """What to say where the processes do not find each other."""
    many = f"--num_processes={cluster.num_processes}" if cluster.coordinator else "the environment's processes"
    where = f"--coordinator={cluster.coordinator}" if cluster.coordinator else "its coordinator"
    return (
        f"not all of {many} have come to {where} in --start_seconds={cluster.start_seconds}: start the others, or mend "
        "the address"
    )


def _client() -> Any:
    return distributed.global_state.client


def _watch(num_processes: int) -> None:
    """Ends this process, in one line, when another one is lost: its collectives would wait forever."""
    everyone = list(range(num_processes))
    told, since = None, 0.0  # what a process said that has ended, and when it was heard
    while (client := _client()) is not None and not _leaving.is_set():
        try:
            missing = sorted(set(everyone) - set(client.get_live_nodes(everyone)))
        except jax.errors.JaxRuntimeError:
            missing = [0]  # the coordinator does not answer
        missing = [process for process in missing if _try_get(client, f"{DONE}/{process}") is None]
        if told is None and (told := _try_get(client, ENDED)) is not None:
            since = time.monotonic()
        if _leaving.is_set():
            return
        # Most know by themselves what is wrong, as where configs differ, and need some time to say it.
        if told is not None and (missing or time.monotonic() - since > LEAVE_SECONDS / 2):
            end_with(*map(int, told.split()))
        if missing:
            end_for(missing)
        time.sleep(WATCH_SECONDS)


def end_for(missing: list[int]) -> None:
    """Ends this process at once: an orderly end would wait for those who are lost."""
    lost = f"process {missing[0]}" if len(missing) == 1 else f"processes {', '.join(map(str, missing))}"
    line = f"error: {lost} of this run ended or was lost: the same command goes on from the newest checkpoint\n"
    os.write(2, line.encode())
    os._exit(LOST)


def end_with(process: int, code: int) -> None:
    """Ends this process at once, as another one has ended, which has said why."""
    os.write(2, f"error: process {process} ended, and said why: see its line\n".encode())
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        _client().key_value_set(f"{DONE}/{jax.process_index()}", GONE, allow_overwrite=True)
    os._exit(code)


def share(name: str, value: str) -> list[str]:
    """The values that all processes, in order, give under a name that is used once."""
    if jax.process_count() == 1:
        return [value]
    client = _client()
    client.key_value_set(f"moe_jax/{name}/{jax.process_index()}", value)
    wait = 10**9  # milliseconds; who is lost is noticed by the watch
    return [client.blocking_key_value_get(f"moe_jax/{name}/{i}", wait) for i in range(jax.process_count())]


def check_alike(facts: Mapping[str, Any]) -> None:
    """Raises ConfigError, on every process, where the facts {name: value} of two processes differ."""
    everyone = [json.loads(text) for text in share("facts", json.dumps(facts, sort_keys=True, default=str))]
    first = everyone[0]
    for number, other in enumerate(everyone):
        for name in sorted(set(first) | set(other)):
            if first.get(name) != other.get(name):
                raise ConfigError(
                    f"process {number} has {name}={other.get(name)!r} and process 0 has {first.get(name)!r}: start all "
                    "processes with the same config, data and code"
                )


class Agreement:
    """On the step after which all processes stop, when one of them has received a signal.

    Who hears of a signal says at which step, and trains on: whoever waited there would keep the others from ending a
    step that needs all of them. Once all have spoken, all stop `AHEAD` steps after the furthest of these. Nobody is
    past that when the last one speaks, since every step sums over all processes and few are under way at a time.
    """

    ASK_SECONDS = 0.2
    AHEAD = 8  # steps

    def __init__(self, last_step: int):
        self._last_step = last_step  # of the run: who has done it has finished, whatever was signalled
        self._asked = 0.0
        self._heard: int | None = None
        self._stop_at: int | None = None  # agreed on
        self.signal: int | None = None  # that all stop for

    def stop(self, step: int, signal: int | None) -> bool:
        """Whether to stop after `step`; `signal` is what this process has received."""
        if jax.process_count() == 1:
            self.signal = signal
            return signal is not None
        if self._stop_at is None:
            self._listen(step, signal)
        return self.signal is not None and self._stop_at is not None and step >= self._stop_at

    def _listen(self, step: int, signal: int | None) -> None:
        client, now = _client(), time.monotonic()
        if self._heard is None:
            if signal is not None:
                client.key_value_set("moe_jax/signal", str(signal), allow_overwrite=True)
            elif now - self._asked < self.ASK_SECONDS:
                return
            self._asked = now
            heard = _try_get(client, "moe_jax/signal")
            if heard is None:
                return
            self._heard = int(heard)
            client.key_value_set(f"moe_jax/stop/{jax.process_index()}", str(step))
        steps = [_try_get(client, f"moe_jax/stop/{i}") for i in range(jax.process_count())]
        if None in steps:
            return
        self._stop_at = max(int(one) for one in steps if one is not None) + self.AHEAD
        if self._stop_at < self._last_step:
            self.signal = self._heard


def _try_get(client: Any, name: str) -> str | None:
    try:
        return client.key_value_try_get(name)
    except jax.errors.JaxRuntimeError:  # there is none
        return None
