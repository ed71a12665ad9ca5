"""A run that is killed at random moments, by random signals, ends bit for bit as one that nobody disturbed."""

import json
import random
import signal
import time

import pytest
from lives import Life, read_lines, without_times, write_config

pytestmark = pytest.mark.soak

KILLS, STEPS = 20, 12_000
SIGNALS = {  # and the exit codes that are right: a signal before the loop has begun ends the process at once
    signal.SIGKILL: {-9},
    signal.SIGTERM: {143, -15},
    signal.SIGINT: {130, -2},
    signal.SIGHUP: {129, -1},
}
FIELDS = {
    "moe.jitter": 0.1,  # noise in every step
    "moe.bias_rate": 0.01,
    "log.every": 1,
    "eval.every": 500,
    "eval.batches": 2,
    "checkpoint.every": 50,
    "train.warmup_steps": 10,
}


def test_kills_leave_no_trace(tiny, tmp_path):
    draw = random.Random(0)
    config = write_config(tmp_path / "config.py", tiny | FIELDS)
    undisturbed = Life(config, tmp_path / "undisturbed", STEPS)
    assert undisturbed.end()[0] == 0
    directory, killed, ended = tmp_path / "disturbed", [], None
    while ended is None:
        life = Life(config, directory, STEPS)
        number = draw.choice(list(SIGNALS)) if len(killed) < KILLS else None
        if number is None:
            ended = life.end()
            break
        # From the first import to long after the first checkpoint: some die before they have begun.
        time.sleep(draw.uniform(0.5, 11))
        life.process.send_signal(number)
        code, said = life.end()
        if code == 0:  # it was done before
            pytest.fail(f"{STEPS} steps were too few for {KILLS} kills: {killed}")
        assert code in SIGNALS[number], said
        assert "Traceback" not in said, said
        steps = [line["step"] for line in read_lines(directory)]
        killed.append((number.name, steps[-1] if steps else 0))
    print(killed)
    assert ended[0] == 0, ended[1]
    lines, expected = (
        [without_times(line) for line in read_lines(tmp_path / name)] for name in ("disturbed", "undisturbed")
    )
    assert lines == expected
    results = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("disturbed", "undisturbed")]
    assert without_times(results[0]) == without_times(results[1])
