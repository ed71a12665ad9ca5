"""Writes TensorBoard's event files, with the record format and the protos of the `tensorboard` package alone.

Nothing here imports TensorFlow. (`tensorboard`'s own `EventFileWriter` does so where TensorFlow is installed.)
"""

import io
import itertools
import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from absl import logging
from google.protobuf.message import DecodeError
from matplotlib.image import imsave
from tensorboard.compat.proto import event_pb2
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.histogram import metadata as histogram_metadata
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.image import metadata as image_metadata
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter, masked_crc32c
from tensorboard.util.tensor_util import make_tensor_proto

from moe_jax.files.patient import PatientFile

STATUS = {"success": api_pb2.STATUS_SUCCESS, "failure": api_pb2.STATUS_FAILURE}


class EventFile:
    """A new event file in a directory. By name it comes after those that are there, since readers sort by name.

    Its first records say that the run starts again at `first_step`, so that a TensorBoard that is running forgets what
    it has read from there on. `drop_steps` removes the same from earlier files.
    """

    def __init__(self, directory: Path, first_step: int):
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
        self._records = RecordWriter(PatientFile(path))
        self._kinds: dict[str, str] = {}  # name -> scalars, histograms, images or text
        self._write(file_version="brain.Event:2")
        self._write(step=first_step, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

    def write(self, step: int, values: Sequence[Summary.Value]) -> None:
        """Appends values of one step and flushes them.

        Raises:
            ValueError: a name has been used for another kind of value. TensorBoard would not show the later kind.
        """
        for value in values:
            kind = value.metadata.plugin_data.plugin_name
            known = self._kinds.setdefault(value.tag, kind)
            if kind != known:
                raise ValueError(f"{value.tag} is a name among {known}: use another one among {kind}")
        self._write(step=step, summary=Summary(value=values))

    def close(self) -> None:
        """Closes the file."""
        self._records.close()

    def _write(self, **fields) -> None:
        self._records.write(event_pb2.Event(wall_time=time.time(), **fields).SerializeToString())
        self._records.flush()


def drop_steps(directory: Path, first_step: int) -> None:
    """Removes the values of steps from `first_step` on, and torn records, from a directory's event files.

    TensorBoard itself purges by the START record alone, but its data server and the readers of scripts do not. A file
    that is damaged is kept as damaged.*, which no reader looks at, and what comes before the damage is written anew.
    """
    for path in sorted(directory.glob("events.out.tfevents.*")):
        name = path.name.removeprefix("events.out.tfevents.")
        rewritten = path.with_name(f"partial.{name}")
        if not path.is_file():
            set_aside(path)
            continue
        try:
            with rewritten.open("wb") as file:
                for record, event in _read_records(path):
                    if event.step < first_step or not event.HasField("summary"):
                        file.write(record)
        except DamagedRecordError:
            set_aside(path)
        os.replace(rewritten, path)


def remove(directory: Path) -> None:
    """Removes a directory's event files."""
    for path in directory.glob("events.out.tfevents.*"):
        if path.is_file():
            path.unlink()
        else:
            set_aside(path)


def set_aside(path: Path) -> None:
    """Renames what should be an event file to damaged.*, which no reader looks at, and says so."""
    name = path.name.removeprefix("events.out.tfevents.")
    names = itertools.chain([f"damaged.{name}"], (f"damaged.{n}.{name}" for n in itertools.count(2)))
    aside = next(aside for aside in map(path.with_name, names) if not os.path.lexists(aside))
    logging.warning("%s is damaged: it is set aside as %s", path, aside.name)
    path.rename(aside)


class DamagedRecordError(Exception):
    """A record of an event file is not as it was written."""


def _read_records(path: Path) -> Iterator[tuple[bytes, event_pb2.Event]]:
    """The whole records of a file, as stored (8 bytes of length, 4 of checksum, data, 4 of checksum) and parsed.

    Raises DamagedRecordError at the first one that its checksums do not fit. A file may end in the middle of a record.
    """
    with path.open("rb") as file:
        while len(header := file.read(12)) == 12:
            if struct.pack("<I", masked_crc32c(header[:8])) != header[8:]:
                raise DamagedRecordError
            (length,) = struct.unpack("<Q", header[:8])
            if length > path.stat().st_size:
                return
            rest = file.read(length + 4)
            if len(rest) < length + 4:
                return
            if struct.pack("<I", masked_crc32c(rest[:length])) != rest[length:]:
                raise DamagedRecordError
            try:
                event = event_pb2.Event.FromString(rest[:length])
            except DecodeError:
                raise DamagedRecordError from None
            yield header + rest, event


def scalar(name: str, value: float) -> Summary.Value:
    """One number, kept as float32."""
    return scalar_pb(name, value).value[0]


def text(name: str, markdown: str) -> Summary.Value:
    """One text."""
    return text_pb(name, markdown).value[0]


def histogram(name: str, edges: np.ndarray, counts: np.ndarray) -> Summary.Value:
    """Binned counts: rows of left edge, right edge, count."""
    if len(edges) != len(counts) + 1:
        raise ValueError(f"{name}: {len(counts)} bins need {len(counts) + 1} edges, not {len(edges)}")
    bins = np.stack([edges[:-1], edges[1:], counts], axis=1).astype(np.float64)
    return _value(name, histogram_metadata.create_summary_metadata(None, None), bins)


def image(name: str, pixels: np.ndarray) -> Summary.Value:
    """One image: width and height in decimals, then the PNG."""
    png = io.BytesIO()
    imsave(png, pixels, format="png")
    height, width, _ = pixels.shape
    strings = np.array([str(width).encode(), str(height).encode(), png.getvalue()], dtype=object)
    return _value(name, image_metadata.create_summary_metadata(None, None, converted_to_tensor=True), strings)


def session_start(hparams: Mapping[str, bool | int | float | str]) -> Summary.Value:
    """The start of an HParams session now.

    An empty trial id makes every run a row of its own; otherwise runs with equal hyperparameters would be averaged.
    """
    return hparams_pb(dict(hparams), trial_id="").value[0]


def session_end(status: Literal["success", "failure"]) -> Summary.Value:
    """The end of an HParams session now."""
    end = plugin_data_pb2.SessionEndInfo(status=STATUS[status], end_time_secs=time.time())
    metadata = hparams_metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=end))
    tag = hparams_metadata.SESSION_END_INFO_TAG
    return Summary.Value(tag=tag, metadata=metadata, tensor=hparams_metadata.NULL_TENSOR)


def _value(name: str, metadata: SummaryMetadata, array: np.ndarray) -> Summary.Value:
    return Summary.Value(tag=name, metadata=metadata, tensor=make_tensor_proto(array))
