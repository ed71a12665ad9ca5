"""What is only for looking at never keeps a run from going on: it is set aside, said so, and written anew."""

import errno
import json
import math
import os
import random

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from moe_jax.files import patient
from moe_jax.files.patient import PatientFile
from moe_jax.journal.metrics import MetricsWriter
from moe_jax.journal.reading import last_line, newest_values, read_lines, training_seconds


def log(workdir, steps, resumed_step=0):
    with MetricsWriter(workdir, resumed_step) as writer:
        writer.hparams({"seed": 0}, ["eval_loss"])
        for step in steps:
            writer.scalars(step, {"train/loss": float(step), "train/step_seconds": 0.5})


def losses(workdir):
    """The steps of the loss in TensorBoard, which stops at the first record that is damaged."""
    events = EventAccumulator(str(workdir / "tensorboard"))
    events.Reload()
    return [event.step for event in events.Tensors("train/loss")]


def event_file(workdir):
    (path,) = (workdir / "tensorboard").glob("events*")
    return path


def damaged(workdir):
    return [path.name for path in (workdir / "tensorboard").glob("damaged.*")]


def test_any_flipped_bit_of_an_event_file_is_survived(tmp_path, caplog):
    log(tmp_path, range(1, 9))
    path, whole = event_file(tmp_path), event_file(tmp_path).read_bytes()
    draw = random.Random(0)
    for trial in range(100):
        caplog.clear()
        for old in (tmp_path / "tensorboard").glob("*events.*"):
            old.unlink()
        for old in (tmp_path / "tensorboard").glob("damaged.*"):
            old.unlink()
        flipped = bytearray(whole)
        bit = draw.randrange(8 * len(whole))
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        log(tmp_path, [9], resumed_step=8)
        assert losses(tmp_path)[-1] == 9, trial
        assert len(damaged(tmp_path)) == ("set aside" in caplog.text) == 1
        assert (tmp_path / "tensorboard" / damaged(tmp_path)[0]).read_bytes() == bytes(flipped)


DAMAGES = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "zeros behind": lambda content: content + bytes(100),
    "zeros": lambda content: bytes(len(content)),
    "text": lambda content: b"no event file\n" * 100,
    "twice": lambda content: content + content[7:],
    "a huge length": lambda content: b"\xff" * 8 + content[8:],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_other_damages_of_an_event_file(tmp_path, damage):
    log(tmp_path, range(1, 9))
    path = event_file(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    log(tmp_path, [9], resumed_step=8)
    assert losses(tmp_path)[-1] == 9
    log(tmp_path, [10], resumed_step=9)  # what was written anew is whole
    assert losses(tmp_path)[-2:] == [9, 10]


def test_a_folder_in_place_of_an_event_file(tmp_path):
    log(tmp_path, range(1, 9))
    for path in (tmp_path / "tensorboard").rglob("events*"):
        path.unlink()
        path.mkdir()
    log(tmp_path, [9], resumed_step=8)
    assert losses(tmp_path) == [9]
    assert len(damaged(tmp_path)) == 1


ODD = [
    "[]", "null", "3", '"text"', "{}", '{"step": null}', '{"step": "3"}', '{"step": NaN}', '{"step": 1e99}',
    '{"step": -1}', '{"step": true}', '{"step": 2, "train/loss": "low"}', '{"step": 2, "train/loss": [[1]]}',
    '{"step": 2, "a": {"b": 1}}', '{"step": 2, "train/loss": ' + "9" * 400 + "}", "[" * 100_000, '{"step": 2, "tra',
    "\0" * 10, "\ufeff{}",
]  # fmt: skip


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_an_odd_line_of_metrics_is_set_aside_and_the_others_stay(tmp_path, odd, caplog):
    log(tmp_path, [1, 2])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + odd + "\n" + json.dumps({"step": 3, "train/loss": 3.0}) + "\n")
    before = path.read_bytes()
    assert last_line(tmp_path, "train/step_seconds")["step"] == 2
    assert newest_values(tmp_path, ["train/loss"]) == {"step": 3, "train/loss": 3.0}
    with pytest.raises(ValueError, match=r"line 3 of metrics\.jsonl is none that a run has written"):
        read_lines(tmp_path)
    log(tmp_path, [4], resumed_step=3)
    assert [line["step"] for line in read_lines(tmp_path)] == [1, 2, 3, 4]
    assert (tmp_path / "damaged.metrics.jsonl").read_bytes() == before
    assert "metrics.jsonl has damaged lines: it is set aside as damaged.metrics.jsonl" in caplog.text
    assert training_seconds(tmp_path) == 2.0


def test_bytes_that_are_no_text(tmp_path):
    log(tmp_path, [1, 2])
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"\xff\xfe\n" + path.read_bytes())
    log(tmp_path, [3], resumed_step=2)
    assert [line["step"] for line in read_lines(tmp_path)] == [1, 2, 3]


def test_values_that_are_not_finite_are_no_damage(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.scalars(1, {"train/loss": math.nan})
        writer.arrays(1, {"moe/load/layer_00": np.array([1.0, math.inf])})
    log(tmp_path, [2], resumed_step=1)
    assert [line["step"] for line in read_lines(tmp_path)] == [1, 1, 2]
    assert not (tmp_path / "damaged.metrics.jsonl").exists()


def test_a_full_disk_tears_nothing_and_what_waited_is_written(tmp_path, monkeypatch, caplog):
    write, room = os.write, [10]

    def limited(file, data):
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(file, bytes(data[: room[0]]))
        room[0] -= written
        return written

    monkeypatch.setattr(patient.os, "write", limited)
    file = PatientFile(tmp_path / "file")
    for line in (b"first line\n", b"second line\n", b"third line\n"):
        file.write(line)
        file.flush()
    assert (tmp_path / "file").read_bytes() == b"first line"
    assert caplog.text.count("cannot be written (No space left on device): its lines wait in memory") == 1
    room[0] = 1000
    file.close()
    assert (tmp_path / "file").read_bytes() == b"first line\nsecond line\nthird line\n"
    assert "lacks" not in caplog.text


def test_what_never_found_room_is_counted(tmp_path, monkeypatch, caplog):
    file = PatientFile(tmp_path / "file")
    monkeypatch.setattr(patient, "MAX_WAITING", 12)
    monkeypatch.setattr(patient.os, "write", lambda *_: (_ for _ in ()).throw(OSError(errno.EDQUOT, "Quota exceeded")))
    for line in (b"first line\n", b"second line\n"):
        file.write(line)
        file.flush()
    file.close()
    assert "lacks its last 11 bytes" in caplog.text
