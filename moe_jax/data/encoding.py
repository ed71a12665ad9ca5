"""Encodes many texts in order, in this process or, where that is worth it, in several at once."""

import collections
import contextlib
import os
import pickle
import queue
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moe_jax.config.rules import MachineError
from moe_jax.data.tokenizers import TOKENIZERS, Tokenizer

CHUNK = 1 << 20  # bytes of text that a process encodes at a time
PARALLEL_FROM = 1 << 24  # bytes of text from which starting processes is worth it
Ids = NDArray[Any]


class Item(NamedTuple):
    """A text, and what stands for it in the answer."""

    key: Any
    text: bytes


Encode = Callable[[Iterable[Item]], Iterator[tuple[Any, Ids]]]


@contextlib.contextmanager
def encoder(name: str, serialized: str, total_bytes: int, workers: int = 0) -> Iterator[Encode]:
    """Yields a function from texts to the key and the ids of each, in order, whatever the number of processes.

    It takes the texts a few megabytes ahead of what it yields, and raises MachineError if a process dies.

    Args:
      name: the tokenizer's, in `TOKENIZERS`.
      serialized: its serialized form.
      total_bytes: about how much text will come, which decides whether processes are started.
      workers: the number of processes; 0: one for each core that this process may use.
    """
    workers = workers or _cores()
    if TOKENIZERS[name].slow and workers > 1 and total_bytes >= PARALLEL_FROM:
        with _processes(workers, name, serialized) as idle:
            yield lambda items: _in_processes(items, idle, workers)
    else:
        tokenizer = TOKENIZERS[name].open(serialized)
        yield lambda items: _in_this_process(items, tokenizer)


def _in_this_process(items: Iterable[Item], tokenizer: Tokenizer) -> Iterator[tuple[Any, Ids]]:
    for chunk in _chunks(items, 4 * CHUNK):
        yield from zip([item.key for item in chunk], tokenizer.encode_batch([item.text for item in chunk]), strict=True)


def _in_processes(
    items: Iterable[Item], idle: "queue.SimpleQueue[subprocess.Popen[bytes]]", workers: int
) -> Iterator[tuple[Any, Ids]]:
    """Hands out chunks to whichever process is idle, two for each process ahead of what is yielded."""
    pending: collections.deque[tuple[list[Any], Future[list[Ids]]]] = collections.deque()
    with ThreadPoolExecutor(workers) as threads:
        for chunk in _chunks(items, CHUNK):
            future = threads.submit(_ask, idle, [item.text for item in chunk])
            pending.append(([item.key for item in chunk], future))
            if len(pending) == 2 * workers:
                keys, future = pending.popleft()
                yield from zip(keys, future.result(), strict=True)
        for keys, future in pending:
            yield from zip(keys, future.result(), strict=True)


def _ask(idle: "queue.SimpleQueue[subprocess.Popen[bytes]]", texts: list[bytes]) -> list[Ids]:
    """The ids of the texts, from a process that has nothing else to do."""
    process = idle.get()
    try:
        assert process.stdin is not None and process.stdout is not None
        pickle.dump(texts, process.stdin, protocol=5)
        process.stdin.flush()
        lengths, ids = pickle.load(process.stdout)
    except (OSError, EOFError, pickle.UnpicklingError):
        raise MachineError(
            f"a process that tokenizes ended with exit code {process.wait()}: it may have run out of memory; set "
            "data.workers to fewer"
        ) from None
    finally:
        idle.put(process)
    return np.split(ids, np.cumsum(lengths[:-1]))


@contextlib.contextmanager
def _processes(workers: int, name: str, serialized: str) -> Iterator["queue.SimpleQueue[subprocess.Popen[bytes]]"]:
    """Processes that have opened the tokenizer, and that end with the block.

    They are none of `multiprocessing`, whose children import the main script, and with it JAX.
    """
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path, "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "moe_jax.data.worker"]
    with contextlib.ExitStack() as stack:
        idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        for _ in range(workers):
            # A session of its own, so that Ctrl-C is for this process alone; it ends when its input does.
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
            )
            stack.callback(_end, process)
            assert process.stdin is not None
            pickle.dump((name, serialized), process.stdin)
            idle.put(process)
        yield idle


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    with contextlib.suppress(OSError), process:
        pass


def _chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """The items in lists of about `size` bytes of text."""
    chunk: list[Item] = []
    total = 0
    for item in items:
        chunk.append(item)
        total += len(item.text)
        if total >= size:
            yield chunk
            chunk, total = [], 0
    if chunk:
        yield chunk
