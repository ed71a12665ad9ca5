"""Cells that a cluster interrupts: they checkpoint, are requeued, and end as if nobody had disturbed them."""

import json
import os
import signal
import subprocess

import pytest
from tiny_sweep import (
    DEADLINE,
    ONE_DEVICE,
    ROOT,
    cells_of,
    kill_cell,
    lines,
    newest_step,
    wait_until,
    without_times,
    write_text,
)

from moe_jax.sweep import cell_job
from moe_jax.sweep.cell_job import STOP, CellJob
from moe_jax.sweep.interruption import is_interruption, saved_step
from moe_jax.sweep.launchers import Submitit, _JobHandle
from moe_jax.sweep.ledger import Ledger

STEPS = 300


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    """Two cells that train alike, and save nothing unless they are interrupted; their processes find the package."""
    pytest.importorskip("submitit")
    directory = tmp_path_factory.mktemp("interruption")
    fields = {"data.source": f"text:{write_text(directory / 'text')}", "data.cache_dir": str(directory / "cache")}
    points = [{"checkpoint.every": every} for every in (10_000, 20_000)]
    ledger = Ledger(
        directory / "sweep",
        cells_of(points, fields=fields | {"train.steps": STEPS, "moe.jitter": 0.1}),
    )
    ledger.open(add_cells=False)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ONE_DEVICE.items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])))
        yield ledger


@pytest.fixture(scope="module")
def submitit(ledger):
    return Submitit("local", ledger.workdir / "jobs", {"timeout_min": DEADLINE // 60})


@pytest.fixture(scope="module")
def undisturbed(ledger, submitit):
    """The work directory of a cell that ran from its first step to its last."""
    cell = ledger.workdir_of(ledger.cells[0].name)
    assert end(submitit.start(cell, 0)) == 0
    return cell


def end(handle):
    codes = []
    wait_until(lambda: codes.append(handle.poll()) or codes[-1] is not None)
    return codes[-1]


def log_of(submitit, job):
    return (submitit._executor.folder / f"{job.job_id}_0_log.err").read_text()


def steps_until(handle, cell, goal):
    """The newest steps of the cell as they come, until they are past the goal."""
    seen = []
    wait_until(lambda: seen.append(newest_step(cell)) or seen[-1] > goal or handle.poll() is not None)
    assert seen[-1] < STEPS, "it was faster than the test"
    return seen


def test_a_job_before_its_time_limit_is_requeued_and_resumes(ledger, submitit, undisturbed):
    """SIGUSR2 and SIGTERM, each in the middle of training. One job does it all, and its end is that of a whole run."""
    cell = ledger.workdir_of(ledger.cells[1].name)
    handle, saved = submitit.start(cell, 0), 0
    for number in (signal.SIGUSR2, signal.SIGTERM):
        assert min(steps_until(handle, cell, saved + 10)) >= saved, "it resumes"
        kill_cell(cell, number)
        wait_until(lambda saved=saved: saved_step(cell) > saved)
        saved = saved_step(cell)
    assert end(handle) == 0
    assert log_of(submitit, handle._job).count("Requeued job") == 2
    assert ledger.status(ledger.cells[1]) == "finished"
    found, expected = ([line for line in lines(path) if "train/loss" in line] for path in (cell, undisturbed))
    assert [without_times(line) for line in found] == [without_times(line) for line in expected]
    summaries = [json.loads((path / "summary.json").read_text()) for path in (cell, undisturbed)]
    assert without_times(summaries[0]) == without_times(summaries[1])


@pytest.fixture
def handlers():
    """The handlers of this process, put back after the test."""
    before = {number: signal.getsignal(number) for number in cell_job.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def job(tmp_path, monkeypatch, handlers):
    """job(requeue, saves, code): what a CellJob returns that meets SIGUSR2, and how often it was requeued."""
    calls = []

    def run(requeue, saves, code=None):
        def bound(number, frame):
            calls.append(number)
            requeue()

        def run_cell(workdir):
            if saves:
                (workdir / "checkpoints" / "5").mkdir(parents=True)
            if code is None:
                os.kill(os.getpid(), signal.SIGUSR2)
            return code

        signal.signal(signal.SIGUSR2, bound)
        monkeypatch.setattr(cell_job, "run_cell", run_cell)
        return CellJob(tmp_path)(), calls

    return run


def leave():
    raise SystemExit(1)


def refuse():
    raise subprocess.CalledProcessError(1, ["scontrol", "requeue"])


INTERRUPTED = 128 + signal.SIGUSR2


@pytest.mark.parametrize("code", [None, INTERRUPTED], ids=["during setup", "checkpointed"])
def test_what_was_saved_is_requeued_in_place(job, code):
    with pytest.raises(SystemExit):
        job(leave, saves=True, code=code)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN, "scontrol's own signal does not disturb it"


@pytest.mark.parametrize("code", [None, INTERRUPTED], ids=["during setup", "checkpointed"])
def test_a_job_that_saved_nothing_is_left_to_the_sweep(job, code):
    assert job(leave, saves=False, code=code) == (INTERRUPTED, [])


def test_a_job_that_the_sweep_itself_stops_is_not_requeued(job, tmp_path, submitit):
    cancelled = []

    class Job:
        def cancel(self):
            cancelled.append(True)

    _JobHandle(Job(), tmp_path).stop()
    assert cancelled == [True]
    assert job(leave, saves=True, code=INTERRUPTED) == (INTERRUPTED, [])
    submitit._executor, executor = Never(), submitit._executor
    try:
        submitit.start(tmp_path, 0)
    finally:
        submitit._executor = executor
    assert not (tmp_path / STOP).exists(), "the next start has forgotten it"


class Never:
    def submit(self, function):
        return None


def test_a_job_that_cannot_be_requeued_is_left_to_the_sweep(job):
    assert job(refuse, saves=True, code=INTERRUPTED) == (INTERRUPTED, [signal.SIGUSR2])


@pytest.mark.parametrize("code", [0, 1])
def test_other_ends_are_no_interruptions(job, code):
    assert job(leave, saves=True, code=code) == (code, [])


def test_codes_of_interruptions():
    assert [code for code in (0, 1, 2, 3, 4, 128, 134, 137, 139, -9, -11, -6) if is_interruption(code)] == []
    assert all(map(is_interruption, (129, 130, 138, 140, 143, -1, -2, -10, -12, -15)))


def test_the_newest_checkpoint(tmp_path):
    assert saved_step(tmp_path) == 0
    for name in ("8", "40", "120.orbax-checkpoint-tmp"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert saved_step(tmp_path) == 40


@pytest.mark.parametrize(
    "state, code",
    [("TIMEOUT", -15), ("PREEMPTED", -15), ("CANCELLED by 7", -15), ("NODE_FAIL", -15), ("OUT_OF_MEMORY", -9)],
)
def test_a_lost_job_was_interrupted_if_the_cluster_says_so(tmp_path, state, code):
    from submitit.core.utils import UncompletedJobError

    class Lost:
        def done(self):
            return True

        def exception(self):
            return UncompletedJobError("no output")

    Lost.state = state
    assert _JobHandle(Lost(), tmp_path).poll() == code
