"""Sweeps as a user starts, kills and continues them: every process is real."""

import csv
import json
import re
import signal

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from tiny_sweep import (
    Script,
    error_line,
    kill_cell,
    lines,
    newest_step,
    saved_steps,
    wait_until,
    without_times,
    write_config,
    write_text,
)

from moe_jax.files.lock import is_held, locked

STEPS, SAVE_EVERY = 480, 40
FIRST, SECOND = "capacity_factor=1.0,seed=0", "capacity_factor=1.0,seed=1"
SEEDS = 'Sweep(grid({"moe.capacity_factor": (1.0,)}), seeds=(0, 1))'


@pytest.fixture(scope="module")
def common(tmp_path_factory):
    """Fields of all cells here."""
    text = write_text(tmp_path_factory.mktemp("text") / "documents")
    return {"data.source": f"text:{text}", "data.cache_dir": str(tmp_path_factory.mktemp("cache"))}


@pytest.fixture(scope="module")
def story(common, tmp_path_factory):
    """Two cells, one at a time. Ctrl-C; then the first cell is killed, started again, and the sweep is killed; then all
    may finish. Exit code and output of each life, and what was on disk between them.
    """
    directory = tmp_path_factory.mktemp("story")
    fields = {"train.steps": STEPS, "checkpoint.every": SAVE_EVERY, "moe.jitter": 0.1}
    config, sweep = write_config(directory / "seeds.py", common | fields, SEEDS), directory / "sweep"
    first, second = sweep / "cells" / FIRST, sweep / "cells" / SECOND
    start = lambda name: Script("sweep.py", directory / f"{name}.log", config, sweep)
    on_disk = lambda: (newest_step(first), saved_steps(first))
    left = {"config": config, "sweep": sweep}

    life = start("interrupted")
    life.until(lambda: newest_step(first) > SAVE_EVERY)
    life.process.send_signal(signal.SIGINT)
    left["interrupted"], left["after Ctrl-C"] = life.end(), on_disk()
    left["compiled for one seed"] = training_programs(sweep)

    cache = {"JAX_COMPILATION_CACHE_DIR": str(sweep / "compiled"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    fields = ("--config.moe.capacity_factor=1.0",)
    undisturbed = Script(
        "train.py", directory / "train.log", config, directory / "undisturbed", *fields, variables=cache
    )
    life = start("killed")
    stopped = left["after Ctrl-C"][0]
    goal = stopped + SAVE_EVERY + 5
    periodic = lambda step: step > stopped and step % SAVE_EVERY == 0
    life.until(lambda: resumptions(first) and newest_step(first) > goal and periodic(saved_steps(first)[-1]))
    kill_cell(first)
    left["after the cell's death"] = on_disk()
    life.until(lambda: len(resumptions(first)) == 2 and newest_step(first) > goal + SAVE_EVERY)
    life.process.kill()
    left["killed"] = life.end()
    wait_until(lambda: not is_held(first / "cell.lock"))
    left["after the sweep's death"] = on_disk()
    left["files of the second"] = times_of(second)

    left["finished"] = start("finished").end()
    left["files of the second at the end"] = times_of(second)
    assert undisturbed.end()[0] == 0
    return left | {"first": first, "second": second, "undisturbed": directory / "undisturbed"}


def training_programs(sweep):
    return sorted(path.name for path in (sweep / "compiled").glob("jit_step-*"))


def resumptions(cell):
    """The steps at which the cell's lives went on."""
    log = cell / "log.txt"
    return [int(step) for step in re.findall(r"Resumed at step (\d+)", log.read_text())] if log.exists() else []


def times_of(cell):
    """When every file was last written, but for cell.json, which each start writes anew."""
    return {path: path.stat().st_mtime_ns for path in cell.rglob("*") if path.is_file() and path.name != "cell.json"}


def rows_of(sweep):
    with (sweep / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def session_status(cell):
    """How the cell's HParams session ended, and its hyperparameters, as TensorBoard reads them."""
    events = EventAccumulator(str(cell / "tensorboard" / "hparams")).Reload()
    content = events.summary_metadata
    data = {tag: plugin_data_pb2.HParamsPluginData.FromString(m.plugin_data.content) for tag, m in content.items()}
    end = data.get(metadata.SESSION_END_INFO_TAG)
    hparams = dict(data[metadata.SESSION_START_INFO_TAG].session_start_info.hparams)
    return (None if end is None else end.session_end_info.status), hparams


def test_ctrl_c_saves_the_running_cell_and_is_told_to_the_shell(story):
    code, output = story["interrupted"]
    newest, saved = story["after Ctrl-C"]
    assert code == 130, output
    assert "the same command continues" in output
    assert SAVE_EVERY < newest == saved[-1] < STEPS
    assert resumptions(story["first"])[0] == newest


def test_a_killed_cell_is_started_again_and_resumes(story):
    newest, saved = story["after the cell's death"]
    resumed = resumptions(story["first"])[1]
    assert resumed in saved
    assert story["after Ctrl-C"][0] < resumed <= newest < STEPS
    assert resumed % SAVE_EVERY == 0


def test_a_cell_outlives_a_killed_sweep_by_a_checkpoint(story):
    assert story["killed"][0] == -signal.SIGKILL
    newest, saved = story["after the sweep's death"]
    assert newest == saved[-1] < STEPS
    assert resumptions(story["first"])[2:] == [newest]


def test_the_same_command_finishes_it(story):
    code, output = story["finished"]
    assert code == 0, output
    rows = rows_of(story["sweep"])
    assert [(row["cell"], row["status"], row["steps"]) for row in rows] == [
        (FIRST, "finished", str(STEPS)),
        (SECOND, "finished", str(STEPS)),
    ]
    assert [float(row["eval_loss"]) for row in rows] == [
        json.loads((story[name] / "summary.json").read_text())["eval_loss"] for name in ("first", "second")
    ]
    assert f"Report: {story['sweep'] / 'report.md'}" in output


def test_a_finished_cell_is_not_touched_again(story):
    files = story["files of the second"]
    assert story["second"] / "summary.json" in files
    assert files == story["files of the second at the end"]
    assert SECOND not in story["finished"][1]


def test_the_process_of_a_cell_ends_in_peace(story):
    """A thread that waits for the parent's end must not make the interpreter abort at exit."""
    log = (story["second"] / "log.txt").read_text()
    assert f"step {STEPS}: held-out loss" in log
    assert "Fatal Python error" not in log


def test_nothing_is_lost_and_nothing_is_run_twice(story):
    """Every number of every step is bit for bit that of a run that nobody disturbed."""
    found, expected = lines(story["first"]), lines(story["undisturbed"])
    assert [line["step"] for line in found if "train/loss" in line] == list(range(1, STEPS + 1))
    assert [without_times(line) for line in found] == [without_times(line) for line in expected]
    summaries = [json.loads((story[name] / "summary.json").read_text()) for name in ("first", "undisturbed")]
    assert without_times(summaries[0]) == without_times(summaries[1])


def test_the_second_seed_takes_the_first_ones_program(story):
    assert len(story["compiled for one seed"]) == 1
    assert training_programs(story["sweep"]) == story["compiled for one seed"]


def test_a_finished_cell_is_a_success_in_tensorboard(story):
    status, hparams = session_status(story["first"])
    assert status == api_pb2.STATUS_SUCCESS
    assert hparams["moe.capacity_factor"].number_value == 1.0


@pytest.fixture(scope="module")
def shards(common, tmp_path_factory):
    """Two jobs of an array that start together: two trainings, a twin of one of them, and one that cannot run here."""
    directory = tmp_path_factory.mktemp("shards")
    points = [
        {"moe.capacity_factor": 1.0, "moe.eval_capacity_factor": 0.25},
        {"moe.capacity_factor": 1.0, "moe.eval_capacity_factor": 2.0},
        {"moe.capacity_factor": 2.0, "moe.eval_capacity_factor": 2.0},
        {"model.dtype": "float64"},
    ]
    config = write_config(directory / "points.py", common, f"Sweep({points!r})")
    started = [
        Script("sweep.py", directory / f"{i}.log", config, directory / "sweep", f"--shard={i}/2") for i in range(2)
    ]
    return directory / "sweep", [script.end() for script in started]


def test_shards_complete_the_sweep_together(shards):
    sweep, ends = shards
    assert [code for code, _ in ends] == [1, 0], ends  # the first has the cell that fails
    assert [row["status"] for row in rows_of(sweep)] == ["finished"] * 3 + ["failed"]
    assert (sweep / "report.md").exists()


def test_shards_run_nothing_twice(shards):
    for row in rows_of(shards[0]):
        log = (shards[0] / "cells" / row["cell"] / "log.txt").read_text()
        assert log.count("Fields that differ from the defaults") == 1, log


def test_a_twin_evaluates_the_training_of_the_other(shards):
    first, twin = (shards[0] / "cells" / row["cell"] for row in rows_of(shards[0])[:2])
    trained, adopted = ([line for line in lines(cell) if "train/loss" in line] for cell in (first, twin))
    assert len(trained) == 8
    assert adopted == trained
    assert resumptions(twin) == [8]
    losses = [json.loads((cell / "summary.json").read_text())["eval_loss"] for cell in (first, twin)]
    assert losses[0] != losses[1]


def test_a_failure_is_recorded_and_the_rest_goes_on(shards):
    sweep, ends = shards
    row = rows_of(sweep)[-1]
    assert "JAX_ENABLE_X64" in row["error"]
    assert "\n" not in row["error"]
    assert f"failed  {row['cell']}: {row['error']}" in ends[0][1]
    status, hparams = session_status(sweep / "cells" / row["cell"])
    assert status == api_pb2.STATUS_FAILURE
    assert hparams["model.dtype"].string_value == "float64"


BAD = {  # arguments, and what the one line says
    "nothing to report": (["--report_only"], "holds no sweep, and no finished cell: run the sweep first"),
    "swept field set": (
        ["--config.moe.capacity_factor=3"],
        "--config.moe.capacity_factor is set by the sweep: leave it out",
    ),
    "impossible cell": (["--config.moe.top_k=5"], "2 of 2 cells cannot run, and none was started. " + FIRST),
    "no such shard": (["--shard=2/2"], "--shard=2/2: give INDEX/COUNT with 0 <= INDEX < COUNT"),
}


@pytest.fixture(scope="module")
def refusals(common, tmp_path_factory):
    """Exit code, output and work directory of each bad command line; all of them run at the same time."""
    directory = tmp_path_factory.mktemp("bad")
    config = write_config(directory / "seeds.py", common, SEEDS)
    started = {
        name: Script("sweep.py", directory / f"{i}.log", config, directory / f"{i}", *arguments)
        for i, (name, (arguments, _)) in enumerate(BAD.items())
    }
    return {name: (*script.end(), directory / f"{i}") for i, (name, script) in enumerate(started.items())}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name, refusals):
    code, output, workdir = refusals[name]
    assert code == 2, output
    assert BAD[name][1] in error_line(output)
    assert not workdir.exists()


def test_a_second_sweep_on_the_directory_is_refused(story, tmp_path):
    before = rows_of(story["sweep"])
    with locked(story["sweep"] / "sweep.lock", wait=False):
        code, output = Script("sweep.py", tmp_path / "log", story["config"], story["sweep"]).end()
    assert code == 2, output
    assert re.search(r"another sweep runs here \(process \d+ on .*\): wait for it", error_line(output))
    assert rows_of(story["sweep"]) == before
