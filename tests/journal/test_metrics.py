import contextlib
import io
import json
import math
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing import plugin_event_multiplexer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

from moe_jax.journal.metrics import MetricsWriter


def read_lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def read_tensors(workdir, name):
    """[(step, array), ...] of one tag of WORKDIR/tensorboard, as TensorBoard reads it."""
    events = EventAccumulator(str(workdir / "tensorboard"))
    events.Reload()
    return [(event.step, tensor_util.make_ndarray(event.tensor_proto)) for event in events.Tensors(name)]


def log_steps(writer, steps, value=0.0):
    for step in steps:
        writer.scalars(step, {"train/loss": value + step})


def test_scalars_go_to_both_files(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.scalars(10, {"train/loss": 2.5, "moe/dropped_fraction": np.float32(0.25)})
        writer.scalars(20, {"train/loss": jax.numpy.float32(1.5)})
    assert read_lines(tmp_path) == [
        {"step": 10, "train/loss": 2.5, "moe/dropped_fraction": 0.25},
        {"step": 20, "train/loss": 1.5},
    ]
    assert read_tensors(tmp_path, "train/loss") == [(10, 2.5), (20, 1.5)]
    assert read_tensors(tmp_path, "moe/dropped_fraction") == [(10, 0.25)]


def test_lines_and_events_are_there_before_close(tmp_path):
    writer = MetricsWriter(tmp_path)
    log_steps(writer, [1])
    assert read_lines(tmp_path) == [{"step": 1, "train/loss": 1.0}]
    assert read_tensors(tmp_path, "train/loss") == [(1, 1.0)]
    writer.close()


def test_numbers_that_json_lacks_are_null(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.scalars(1, {"nan": math.nan, "inf": math.inf, "one": 1.0})
    assert read_lines(tmp_path) == [{"step": 1, "nan": None, "inf": None, "one": 1.0}]
    assert np.isnan(read_tensors(tmp_path, "nan")[0][1])
    assert read_tensors(tmp_path, "inf") == [(1, math.inf)]


def test_resume_drops_what_is_past_the_checkpoint(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        log_steps(writer, range(1, 7))
        writer.scalars(6, {"eval/loss": 6.0})
    with MetricsWriter(tmp_path, resumed_step=4) as writer:
        log_steps(writer, [5, 6], value=100.0)
    steps = [1, 2, 3, 4, 5, 6]
    values = [1.0, 2.0, 3.0, 4.0, 105.0, 106.0]
    assert read_lines(tmp_path) == [{"step": s, "train/loss": v} for s, v in zip(steps, values, strict=True)]
    assert read_tensors(tmp_path, "train/loss") == list(zip(steps, values, strict=True))
    with pytest.raises(KeyError):
        read_tensors(tmp_path, "eval/loss")  # gone, though nobody has logged it again
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]
    assert all(path.name.startswith("events") for path in (tmp_path / "tensorboard").iterdir())


def test_a_running_tensorboard_drops_it_too(tmp_path):
    with MetricsWriter(tmp_path / "run") as writer:
        log_steps(writer, range(1, 7))
    runs = plugin_event_multiplexer.EventMultiplexer(purge_orphaned_data=True)
    runs.AddRunsFromDirectory(str(tmp_path))
    runs.Reload()
    assert [event.step for event in runs.Tensors("run/tensorboard", "train/loss")] == [1, 2, 3, 4, 5, 6]
    with MetricsWriter(tmp_path / "run", resumed_step=4) as writer:
        log_steps(writer, [5])
    runs.Reload()
    assert [event.step for event in runs.Tensors("run/tensorboard", "train/loss")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("tail", ['{"step": 3, "train/lo', '{"step"', "\n\0\0\0"])
def test_a_line_torn_by_a_kill_is_dropped(tmp_path, tail):
    with MetricsWriter(tmp_path) as writer:
        log_steps(writer, [1, 2])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(tail)
    (event_file,) = (tmp_path / "tensorboard").glob("events*")
    with event_file.open("rb+") as file:
        file.truncate(event_file.stat().st_size - 5)  # tears step 2
    with MetricsWriter(tmp_path, resumed_step=5) as writer:
        log_steps(writer, [6])
    assert [line["step"] for line in read_lines(tmp_path)] == [1, 2, 6]
    assert read_tensors(tmp_path, "train/loss") == [(1, 1.0), (6, 6.0)]


def test_starting_over_starts_empty(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        log_steps(writer, [0, 1, 2])
    with MetricsWriter(tmp_path) as writer:
        assert read_lines(tmp_path) == []
        log_steps(writer, [1], value=100.0)
    assert read_lines(tmp_path) == [{"step": 1, "train/loss": 101.0}]
    assert read_tensors(tmp_path, "train/loss") == [(1, 101.0)]


def test_histogram_from_counts(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.histogram(3, "moe/load", np.array([0.0, 0.5, 1.0, 2.0]), np.array([7, 0, 1]))
    ((step, bins),) = read_tensors(tmp_path, "moe/load")
    assert step == 3
    np.testing.assert_array_equal(bins, [[0.0, 0.5, 7], [0.5, 1.0, 0], [1.0, 2.0, 1]])


def test_histogram_needs_one_edge_more_than_bins(tmp_path):
    with MetricsWriter(tmp_path) as writer, pytest.raises(ValueError, match="moe/load: 3 bins need 4 edges, not 3"):
        writer.histogram(3, "moe/load", np.arange(3.0), np.ones(3))


def test_image_is_a_png(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, size=(20, 30, 3), dtype=np.uint8)
    with MetricsWriter(tmp_path) as writer:
        writer.image(3, "moe/load", pixels)
    ((step, (width, height, png)),) = read_tensors(tmp_path, "moe/load")
    assert (step, width, height) == (3, b"30", b"20")
    np.testing.assert_array_equal(Image.open(io.BytesIO(png)).convert("RGB"), pixels)


def test_a_name_belongs_to_one_kind(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        log_steps(writer, [1, 2])
        with pytest.raises(ValueError, match="train/loss is a name among scalars: use another one among text"):
            writer.text(1, "train/loss", "text")


def test_text(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.text(0, "config", "**bold**")
    assert read_tensors(tmp_path, "config") == [(0, b"**bold**")]


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with MetricsWriter(tmp_path / "run", resumed_step=3) as writer:
        log_steps(writer, [4])
        writer.text(4, "text", "text")
        writer.image(4, "image", np.zeros((2, 2, 3), np.uint8))
        writer.histogram(4, "histogram", np.arange(3.0), np.ones(2))
        writer.hparams({"seed": 0}, ["loss"])
        writer.finish("success", {"loss": 1.0})
    assert not (tmp_path / "run").exists()


def test_finish_without_hparams_writes_nothing(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.finish("failure", {})
    assert not (tmp_path / "tensorboard/hparams").exists()


def test_tensorflow_is_not_imported_even_where_it_is_installed(tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('tensorflow was imported')")
    program = """
import pathlib, sys
import numpy as np
from moe_jax.journal.metrics import MetricsWriter
with MetricsWriter(pathlib.Path(sys.argv[1])) as writer:
    writer.scalars(1, {"loss": 1.0})
    writer.histogram(1, "histogram", np.arange(3.0), np.ones(2))
    writer.image(1, "image", np.zeros((2, 2, 3), np.uint8))
    writer.text(1, "text", "text")
    writer.hparams({"seed": 0}, ["loss"])
    writer.finish("success", {"loss": 1.0})
assert "tensorflow" not in sys.modules
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-c", program, str(tmp_path / "run")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


class TensorBoardServer:
    """A real TensorBoard on a free port of the loopback interface."""

    def __init__(self, logdir, log, *options):
        self.log = log
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--reload_interval", "1"]
        command += ["--host", "127.0.0.1", "--port", "0", *options]
        with log.open("wb") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file)

    def __enter__(self):
        try:
            self.url = self.until(lambda: re.search(r"http://127.0.0.1:\d+", self.log.read_text()))[0]
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception):
        self.process.terminate()
        self.process.wait(timeout=20)

    def until(self, probe, seconds=60):
        """The first true result of `probe`; a request that fails counts as not ready."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(urllib.error.URLError):
                if result := probe():
                    return result
            time.sleep(0.05)
        raise TimeoutError(f"not ready after {seconds} s")

    def ask(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=20) as reply:
            return json.load(reply)


@pytest.fixture
def two_runs(tmp_path):
    """A sweep of two runs: one failed, was resumed and succeeded; the other diverged."""
    metric_names = ["eval_loss", "train_loss"]
    with MetricsWriter(tmp_path / "sweep/a") as writer:
        writer.hparams({"moe.num_experts": 4, "moe.router": "switch", "train.steps": 5}, metric_names)
        log_steps(writer, [1, 2, 3])
        writer.finish("failure", {})
    with MetricsWriter(tmp_path / "sweep/a", resumed_step=2) as writer:
        writer.hparams({"moe.num_experts": 4, "moe.router": "switch", "train.steps": 9}, metric_names)
        log_steps(writer, [3])
        writer.histogram(3, "load", np.arange(5.0), np.ones(4))
        writer.image(3, "load/by_layer", np.zeros((2, 3, 3), np.uint8))
        writer.text(3, "config", "text")
        writer.finish("success", {"eval_loss": 2.5, "train_loss": 1.25, "not_a_metric": 1.0})
    with MetricsWriter(tmp_path / "sweep/b") as writer:
        writer.hparams({"moe.num_experts": 8, "moe.router": "switch", "train.steps": 9}, metric_names)
        log_steps(writer, [1])
        writer.finish("failure", {"train_loss": math.nan})
    return tmp_path / "sweep"


@pytest.fixture(params=["python", "data_server"])
def server(request, two_runs, tmp_path):
    if request.param == "data_server":
        pytest.importorskip("tensorboard_data_server")
    options = ["--load_fast", "true" if request.param == "data_server" else "false"]
    with TensorBoardServer(two_runs, tmp_path / "tensorboard.log", *options) as server:
        yield server


def test_a_real_tensorboard_shows_all_of_it(server):
    runs = {f"{run}/tensorboard{suffix}" for run in "ab" for suffix in ("", "/hparams")}
    server.until(lambda: set(server.ask("/data/runs")) == runs)
    plugins = ["scalars", "histograms", "images", "text", "hparams"]
    server.until(lambda: all(server.ask("/data/plugins_listing")[name]["enabled"] for name in plugins))

    path = "/data/plugin/scalars/scalars?run=a/tensorboard&tag=train/loss"
    curve = server.until(lambda: len(points := server.ask(path)) == 3 and points)
    assert [(step, value) for _, step, value in curve] == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_a_real_tensorboard_compares_the_runs_by_hyperparameters(server):
    request = {
        "experimentName": "",
        "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"],
        "colParams": [],
        "startIndex": 0,
        "sliceSize": 100,
        "includeMetrics": True,
    }

    def ended_groups():
        groups = server.ask("/data/plugin/hparams/session_groups", request)["sessionGroups"]
        ended = [group for group in groups if group["sessions"][0]["status"] != "STATUS_UNKNOWN"]
        return len(ended) == 2 and sorted(ended, key=lambda group: group["name"])

    succeeded, diverged = server.until(ended_groups)
    assert succeeded["hparams"] == {"moe.num_experts": 4.0, "moe.router": "switch", "train.steps": 9.0}
    assert [session["status"] for session in succeeded["sessions"]] == ["STATUS_SUCCESS"]
    values = {value["name"]["tag"]: (value["trainingStep"], value["value"]) for value in succeeded["metricValues"]}
    assert values == {"eval_loss": (3, 2.5), "train_loss": (3, 1.25)}
    assert diverged["hparams"]["moe.num_experts"] == 8.0
    assert [session["status"] for session in diverged["sessions"]] == ["STATUS_FAILURE"]

    experiment = server.ask("/data/plugin/hparams/experiment", {"experimentName": "", "includeMetrics": True})
    assert {info["name"]["tag"] for info in experiment["metricInfos"]} == {"eval_loss", "train_loss"}
    infos = {info["name"]: info for info in experiment["hparamInfos"]}
    assert infos["moe.num_experts"]["domainInterval"] == {"minValue": 4.0, "maxValue": 8.0}
    assert infos["moe.router"]["domainDiscrete"] == ["switch"]
