"""Writes a run's metrics: WORKDIR/metrics.jsonl for programs (see `reading`), WORKDIR/tensorboard for people.

The files below WORKDIR:

    metrics.jsonl          one line a call of `scalars` or `arrays`: {"step": 20, "train/loss": 5.1, ...}
    tensorboard/           scalars, histograms, images, texts
    tensorboard/hparams/   the HParams session and its final metrics

The session lies in a directory of its own because TensorBoard takes every scalar beside a session for one of its
metrics; there it finds the final ones and no others. No experiment record is written, because TensorBoard would apply
the first one it meets to all runs below its log directory. Without one it infers from all runs together which values
the hyperparameters have and which of them differ.
"""

import functools
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, SupportsFloat

import jax
import numpy as np
from absl import logging
from jaxtyping import Real, UInt8

from moe_jax.files.patient import PatientFile
from moe_jax.journal import event_file
from moe_jax.journal.event_file import EventFile
from moe_jax.journal.reading import METRICS, parse_line

Array = np.ndarray | jax.Array


def _first_process_only(method):
    """The method on the first process of a multi-process run; nothing on the others."""

    @functools.wraps(method)
    def call(*args, **kwargs):
        if jax.process_index() == 0:
            method(*args, **kwargs)

    return call


class MetricsWriter:
    """Writes a run's metrics; on processes other than the first every method does nothing.

    After a restart from a checkpoint, `resumed_step` is the checkpoint's step. What an earlier life of the run logged
    past it is dropped, since it will be logged again. With 0 the run starts over, and so metrics.jsonl starts empty.

    Everything is flushed when a method returns, so that a killed run keeps its metrics. A name belongs to one kind of
    value: a scalar and an image of the same name raise a ValueError. As a context manager that an exception leaves, the
    writer ends the HParams session as a failure.
    """

    @_first_process_only
    def __init__(self, workdir: Path, resumed_step: int = 0):
        first_step = resumed_step + 1 if resumed_step else 0
        workdir.mkdir(parents=True, exist_ok=True)
        self._lines = _reopen_lines(workdir / METRICS, first_step)
        self._directory = workdir / "tensorboard"
        event_file.drop_steps(self._directory, first_step)
        self._events = EventFile(self._directory, first_step)
        self._session: EventFile | None = None
        self._metric_names: frozenset[str] = frozenset()
        self._step = resumed_step

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception) -> None:
        if kind is not None:
            self.finish("failure", {})
        self.close()

    @_first_process_only
    def scalars(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """One line of metrics.jsonl and the same numbers in TensorBoard.

        JSON knows no NaN and no infinities: they are written as null. TensorBoard gets them as they are.
        """
        numbers = {name: float(value) for name, value in values.items()}
        self._write_line(step, {name: _finite(value) for name, value in numbers.items()})
        self._events.write(int(step), [event_file.scalar(name, value) for name, value in numbers.items()])
        self._step = max(self._step, int(step))

    @_first_process_only
    def arrays(self, step: int, values: Mapping[str, Real[Array, " entries"]]) -> None:
        """One line of metrics.jsonl with a list for each name; in TensorBoard a histogram with a bin for each entry.

        What is not finite is treated as in `scalars`.
        """
        arrays = {name: np.asarray(value, np.float64) for name, value in values.items()}
        self._write_line(step, {name: [_finite(entry) for entry in array.tolist()] for name, array in arrays.items()})
        histogram = lambda name, array: event_file.histogram(name, np.arange(len(array) + 1), array)
        self._events.write(int(step), [histogram(name, array) for name, array in arrays.items()])

    @_first_process_only
    def histogram(self, step: int, name: str, edges: Real[Array, " edges"], counts: Real[Array, " bins"]) -> None:
        """A histogram that is already binned: bin i holds `counts[i]` values from `edges[i]` to `edges[i + 1]`.

        Raises:
            ValueError: there is not one edge more than there are bins.
        """
        self._events.write(int(step), [event_file.histogram(name, np.asarray(edges), np.asarray(counts))])

    @_first_process_only
    def image(self, step: int, name: str, pixels: UInt8[np.ndarray, "height width 3"]) -> None:
        """An RGB image."""
        self._events.write(int(step), [event_file.image(name, pixels)])

    @_first_process_only
    def text(self, step: int, name: str, markdown: str) -> None:
        """A text, rendered as Markdown."""
        self._events.write(int(step), [event_file.text(name, markdown)])

    @_first_process_only
    def hparams(self, values: Mapping[str, bool | int | float | str], metric_names: Sequence[str]) -> None:
        """Starts the run's HParams session, in place of one that an earlier life of the run left.

        Args:
            values: the hyperparameters, already flattened.
            metric_names: which of the numbers given to `finish` are the session's metrics.
        """
        directory = self._directory / "hparams"
        event_file.remove(directory)
        self._session = EventFile(directory, 0)
        self._metric_names = frozenset(metric_names)
        self._session.write(0, [event_file.session_start(values)])

    @_first_process_only
    def finish(self, status: Literal["success", "failure"], final: Mapping[str, SupportsFloat]) -> None:
        """Ends the HParams session with its status and final metrics; nothing where `hparams` was not called."""
        if self._session is None:
            return
        metrics = [event_file.scalar(name, float(value)) for name, value in final.items() if name in self._metric_names]
        self._session.write(self._step, [*metrics, event_file.session_end(status)])
        self._session.close()
        self._session = None

    @_first_process_only
    def close(self) -> None:
        """Closes all files; a session that was not finished stays without an end."""
        self._lines.close()
        self._events.close()
        if self._session is not None:
            self._session.close()
            self._session = None

    def _write_line(self, step: int, values: Mapping[str, Any]) -> None:
        self._lines.write(json.dumps({"step": int(step), **values}, allow_nan=False).encode() + b"\n")
        self._lines.flush()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _reopen_lines(path: Path, first_step: int) -> PatientFile:
    """Opens a JSONL file for appending, without its torn line and those of steps from `first_step` on.

    Where it has lines that no writer leaves, the whole file is kept as damaged.NAME, and the others are written anew.
    """
    old = path.read_bytes().decode(errors="replace").splitlines() if path.exists() else []
    parsed = [(text, parse_line(text)) for text in old]
    if any(line is None for _, line in parsed[:-1]):  # the last one is torn where the process was killed
        aside = path.with_name(f"damaged.{path.name}")
        logging.warning("%s has damaged lines: it is set aside as %s, and goes on without them", path, aside.name)
        shutil.copyfile(path, aside)
    kept = "".join(f"{text}\n" for text, line in parsed if line is not None and line["step"] < first_step)
    rewritten = path.with_name(f"{path.name}.partial")
    rewritten.write_text(kept, encoding="utf-8")
    os.replace(rewritten, path)
    return PatientFile(path)
