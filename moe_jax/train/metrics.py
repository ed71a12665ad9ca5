"""What a run writes about itself: WORKDIR/metrics.jsonl for programs, WORKDIR/tensorboard for eyes.

Both are written without TensorFlow: TensorBoard's record format and plugin protos come from the `tensorboard` package
alone. Layout below WORKDIR:

    metrics.jsonl          one line a call of `scalars`: {"step": 20, "train/loss": 5.1, ...}
    tensorboard/           scalars, histograms, images, texts
    tensorboard/hparams/   the HParams session and its final metrics

The session lies in a run of its own because TensorBoard takes every scalar of a session's run for one of its metrics:
there it finds the final ones and no others. No experiment record is written: TensorBoard would apply the first one it
meets to all runs below its log directory; without one it infers the hyperparameters' domains, and which of them differ,
from all runs together.
"""
import functools
import io
import json
import math
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, SupportsFloat, TextIO

import jax
import numpy as np
from jaxtyping import Real, UInt8
from matplotlib.image import imsave
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.plugins.histogram import metadata as histogram_metadata
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.image import metadata as image_metadata
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util import tensor_util

Array = np.ndarray | jax.Array
STATUS = {"success": api_pb2.STATUS_SUCCESS, "failure": api_pb2.STATUS_FAILURE}


def _first_process_only(method):
    """The method on the first process of a multi-process run; nothing on the others."""

    @functools.wraps(method)
    def call(*args, **kwargs):
        if jax.process_index() == 0:
            method(*args, **kwargs)

    return call


class MetricsWriter:
    """Writes a run's metrics; on processes other than the first every method does nothing.

    After a restart from a checkpoint, `resumed_step` is the checkpoint's step: what an earlier life of the run logged
    past it is dropped, since it will be logged again. With 0 the run starts over: metrics.jsonl starts empty.
    Everything is flushed when a method returns, so that a killed run keeps its metrics.
    """

    @_first_process_only
    def __init__(self, workdir: Path, resumed_step: int = 0):
        workdir.mkdir(parents=True, exist_ok=True)
        self._lines = _reopen_lines(workdir / "metrics.jsonl", resumed_step)
        self._directory = workdir / "tensorboard"
        self._events = EventFile(self._directory, purge_step=resumed_step + 1 if resumed_step else 0)
        self._session: EventFile | None = None
        self._metric_names: frozenset[str] = frozenset()
        self._step = resumed_step

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    @_first_process_only
    def scalars(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """One line of metrics.jsonl and the same numbers in TensorBoard.

        JSON knows no NaN and no infinities: they are written as null. TensorBoard gets them as they are.
        """
        numbers = {name: float(value) for name, value in values.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self._lines.write(json.dumps({"step": int(step), **finite}, allow_nan=False) + "\n")
        self._lines.flush()
        self._events.write(step, [scalar_pb(name, value) for name, value in numbers.items()])
        self._step = max(self._step, int(step))

    @_first_process_only
    def histogram(self, step: int, name: str, edges: Real[Array, " edges"], counts: Real[Array, " bins"]) -> None:
        """A histogram that is already binned: bin i holds `counts[i]` values from `edges[i]` to `edges[i + 1]`.

        Raises:
            ValueError: there is not one edge more than there are bins.
        """
        self._events.write(step, [histogram_summary(name, np.asarray(edges), np.asarray(counts))])

    @_first_process_only
    def image(self, step: int, name: str, pixels: UInt8[np.ndarray, "height width 3"]) -> None:
        """An RGB image."""
        self._events.write(step, [image_summary(name, pixels)])

    @_first_process_only
    def text(self, step: int, name: str, markdown: str) -> None:
        """A text, rendered as Markdown."""
        self._events.write(step, [text_pb(name, markdown)])

    @_first_process_only
    def hparams(self, values: Mapping[str, bool | int | float | str], metric_names: Sequence[str]) -> None:
        """Starts the run's HParams session, in place of one that an earlier life of the run left.

        Args:
            values: the hyperparameters, already flattened.
            metric_names: which of the numbers given to `finish` are the session's metrics.
        """
        directory = self._directory / "hparams"
        for old in directory.glob("events.out.tfevents.*"):
            old.unlink()
        self._session = EventFile(directory, purge_step=0)
        self._metric_names = frozenset(metric_names)
        # An empty trial id makes each run a row of its own; otherwise runs with equal hyperparameters are averaged.
        self._session.write(0, [hparams_pb(dict(values), trial_id="")])

    @_first_process_only
    def finish(self, status: Literal["success", "failure"], final: Mapping[str, SupportsFloat]) -> None:
        """Ends the HParams session with its status and final metrics; nothing where `hparams` was not called."""
        if self._session is None:
            return
        metrics = [scalar_pb(name, float(value)) for name, value in final.items() if name in self._metric_names]
        self._session.write(self._step, [*metrics, session_end_summary(status)])
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


class EventFile:
    """A new event file of TensorBoard in a directory, behind those that are there.

    It opens by telling TensorBoard to forget what earlier files of the directory hold from `purge_step` on. (A reader
    sorts files by name, and a session's first START record purges nothing.) `tensorboard`'s own `EventFileWriter`
    imports TensorFlow where that is installed; this one never does.
    """

    def __init__(self, directory: Path, purge_step: int):
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
        self._records = RecordWriter(path.open("xb"))
        self._write(file_version="brain.Event:2")
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(step=purge_step, session_log=start)

    def write(self, step: int, summaries: Sequence[summary_pb2.Summary]) -> None:
        """Appends the summaries as one event."""
        values = [value for summary in summaries for value in summary.value]
        self._write(step=int(step), summary=summary_pb2.Summary(value=values))

    def _write(self, **fields) -> None:
        self._records.write(event_pb2.Event(wall_time=time.time(), **fields).SerializeToString())
        self._records.flush()

    def close(self) -> None:
        """Closes the file."""
        self._records.close()


def histogram_summary(name: str, edges: np.ndarray, counts: np.ndarray) -> summary_pb2.Summary:
    """The summary of binned counts: rows of left edge, right edge, count."""
    if edges.shape[0] != counts.shape[0] + 1:
        raise ValueError(f"{name}: {counts.shape[0]} bins need {counts.shape[0] + 1} edges, not {edges.shape[0]}")
    bins = np.stack([edges[:-1], edges[1:], counts], axis=1).astype(np.float64)
    value = summary_pb2.Summary.Value(
        tag=name,
        metadata=histogram_metadata.create_summary_metadata(display_name=None, description=None),
        tensor=tensor_util.make_tensor_proto(bins),
    )
    return summary_pb2.Summary(value=[value])


def image_summary(name: str, pixels: np.ndarray) -> summary_pb2.Summary:
    """The summary of one image: width and height as text, then the PNG."""
    png = io.BytesIO()
    imsave(png, pixels, format="png")
    height, width, _ = pixels.shape
    value = summary_pb2.Summary.Value(
        tag=name,
        metadata=image_metadata.create_summary_metadata(
            display_name=None, description=None, converted_to_tensor=True
        ),
        tensor=tensor_util.make_tensor_proto(
            np.array([str(width).encode(), str(height).encode(), png.getvalue()], dtype=object)
        ),
    )
    return summary_pb2.Summary(value=[value])


def session_end_summary(status: Literal["success", "failure"]) -> summary_pb2.Summary:
    """The summary that ends an HParams session now."""
    end = plugin_data_pb2.SessionEndInfo(status=STATUS[status], end_time_secs=time.time())
    value = summary_pb2.Summary.Value(
        tag=hparams_metadata.SESSION_END_INFO_TAG,
        metadata=hparams_metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=end)),
        tensor=hparams_metadata.NULL_TENSOR,
    )
    return summary_pb2.Summary(value=[value])


def _reopen_lines(path: Path, last_step: int) -> TextIO:
    """Opens a JSONL file for appending, its whole lines up to `last_step` kept (none if that is 0)."""
    kept = [line for line in _read_lines(path) if last_step and _step_of(line) <= last_step]
    rewritten = path.with_name(path.name + ".partial")
    rewritten.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    os.replace(rewritten, path)
    return path.open("a", encoding="utf-8")


def _read_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []


def _step_of(line: str) -> float:
    """The step of a line; infinite if the line is torn (the process was killed while writing it)."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf
