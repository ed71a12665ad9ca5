"""One run through four deaths and an extension, each life a process of its own, beside one that nobody disturbed."""

import json
import re
import signal

import pytest
from lives import Life, newest_step, read_lines, saved_steps, without_times, write_config

from moe_jax.journal.reading import last_line

SAVE_EVERY = 30
STEPS, EXTENDED = 210, 240
FIELDS = {
    "moe.jitter": 0.1,  # noise in every step
    "log.every": 1,
    "eval.every": 70,
    "eval.batches": 2,
    "checkpoint.every": SAVE_EVERY,
    "train.warmup_steps": 10,
}


def resumed_at(log):
    return int(re.search(r"Resumed at step (\d+)", log)[1])


@pytest.fixture(scope="module")
def lives(tiny, tmp_path_factory):
    """What each life left: name -> (exit code, log, newest logged step, saved steps); and the two work directories."""
    folder = tmp_path_factory.mktemp("resume")
    fields = dict(tiny) | FIELDS
    config = write_config(folder / "config.py", fields)
    disturbed, left = folder / "disturbed", {}

    def live(name, steps, step=None, number=None):
        life = Life(config, disturbed, steps)
        try:
            result = life.end() if number is None else life.stop_at(step, number)
        finally:
            life.process.kill()
        left[name] = (*result, newest_step(disturbed), saved_steps(disturbed))

    undisturbed = Life(config, folder / "undisturbed", EXTENDED)
    try:
        live("killed", STEPS, 2 * SAVE_EVERY + 10, signal.SIGKILL)
        live("terminated", STEPS, 4 * SAVE_EVERY + 10, signal.SIGTERM)
        live("interrupted", STEPS, 5 * SAVE_EVERY + 10, signal.SIGINT)
        live("finished", STEPS)
        left["summary"] = json.loads((disturbed / "summary.json").read_text())
        live("extended", EXTENDED)
        left["undisturbed"] = (*undisturbed.end(), EXTENDED, saved_steps(folder / "undisturbed"))
    finally:
        undisturbed.process.kill()
    return left, disturbed, folder / "undisturbed"


def test_a_killed_run_goes_on_from_its_checkpoint(lives):
    left, _, _ = lives
    code, log, killed_at, _ = left["killed"]
    assert code == -signal.SIGKILL
    assert "Resumed" not in log
    resumed = resumed_at(left["terminated"][1])
    assert 0 < resumed <= killed_at < STEPS
    assert resumed % SAVE_EVERY == 0


@pytest.mark.parametrize("name, after, number", [("terminated", "interrupted", 15), ("interrupted", "finished", 2)])
def test_a_signal_saves_the_step_it_finds(lives, name, after, number):
    left, _, _ = lives
    code, log, newest, saved = left[name]
    assert code == 128 + number
    assert f"Stopped by signal {number}; the same command continues" in log
    assert newest == max(saved) < STEPS
    assert resumed_at(left[after][1]) == newest


def test_it_finishes(lives):
    left, _, _ = lives
    assert left["finished"][0] == 0
    assert left["finished"][2] == max(left["finished"][3]) == STEPS
    assert left["summary"]["steps"] == STEPS


def test_a_finished_run_is_extended(lives):
    left, _, _ = lives
    code, log, newest, _ = left["extended"]
    assert (code, resumed_at(log), newest) == (0, STEPS, EXTENDED)


def test_nothing_shows_in_the_metrics(lives):
    """Every number of every step is bit for bit that of the undisturbed run."""
    left, disturbed, undisturbed = lives
    assert left["undisturbed"][0] == 0, left["undisturbed"][1]
    lines = [without_times(line) for line in read_lines(disturbed)]
    expected = [without_times(line) for line in read_lines(undisturbed)]
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, EXTENDED + 1))
    assert [line["step"] for line in lines if "eval/loss" in line] == [70, 140, STEPS, EXTENDED]
    assert lines == expected


def test_nothing_shows_in_the_summary(lives):
    _, disturbed, undisturbed = lives
    summary, expected = (json.loads((folder / "summary.json").read_text()) for folder in (disturbed, undisturbed))
    assert without_times(summary) == without_times(expected)
    assert summary["steps"] == EXTENDED
    assert summary["train_loss"] == last_line(undisturbed, "train/loss")["train/loss"]
