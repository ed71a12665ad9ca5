import csv
import signal

import pytest
from tiny_sweep import cells_of, finish

from moe_jax.sweep import failure, scheduler
from moe_jax.sweep.interruption import PATIENCE
from moe_jax.sweep.ledger import Ledger
from moe_jax.sweep.scheduler import Scheduler
from moe_jax.train.signals import StopRequest

POINTS = [{"moe.capacity_factor": factor} for factor in (1.0, 2.0, 3.0, 4.0)]
NAMES = [f"capacity_factor={factor},seed=0" for factor in (1.0, 2.0, 3.0, 4.0)]
TWINS = [{"moe.eval_capacity_factor": factor} for factor in (1.0, 2.0, 3.0)]
DONE, RAISED, KILLED, HANGS = 0, 1, -signal.SIGKILL, None


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(scheduler, "POLL_SECONDS", 0.0)


class Script:
    """A launcher whose cells end as written: {name: exit code of each attempt}; those not named finish."""

    def __init__(self, ledger, ends):
        self.cells = {ledger.workdir_of(cell.name): cell for cell in ledger.cells}
        self.ends = {name: list(codes) for name, codes in ends.items()}
        self.started, self.busy, self.most_busy, self.stopped = [], set(), 0, []

    def start(self, workdir, worker):
        assert worker not in self.busy
        self.started.append(workdir.name)
        self.busy.add(worker)
        self.most_busy = max(self.most_busy, len(self.busy))
        codes = self.ends.get(workdir.name, [DONE])
        return Handle(self, workdir, worker, codes.pop(0) if codes else DONE)


class Handle:
    def __init__(self, launcher, workdir, worker, code):
        self.launcher, self.workdir, self.worker, self.code, self.polls = launcher, workdir, worker, code, 0

    def poll(self):
        self.polls += 1
        if self.polls < 3 or self.code is HANGS:
            return None
        cell = self.launcher.cells[self.workdir]
        if self.code == DONE:
            finish(self.workdir, cell)
        elif self.code == RAISED:
            failure.record(self.workdir, cell.fields(), "it raised")
        else:
            (self.workdir / "config.json").write_text("{}")
        self.launcher.busy.discard(self.worker)
        return self.code

    def stop(self):
        self.launcher.stopped.append(self.workdir.name)
        self.code = 128 + signal.SIGTERM


def run(workdir, points=POINTS, ends=None, workers=2, retries=1, watch=lambda stop: None, before=lambda ledger: None):
    """The ledger and the launcher after it, and the scheduler."""
    ledger = Ledger(workdir, cells_of(points))
    ledger.open(add_cells=False)
    before(ledger)
    launcher = Script(ledger, ends or {})
    scheduled = Scheduler(ledger, launcher, workers, retries)
    stop = StopRequest()
    looks = []

    def look():
        looks.append(None)
        assert len(looks) < 1_000, "it does not come to an end"
        watch(stop)

    scheduled.run(ledger.cells, stop, look)
    return ledger, launcher, scheduled


def statuses(ledger):
    return [ledger.status(cell) for cell in ledger.cells]


@pytest.mark.parametrize("workers", [1, 2, 3, 9])
def test_every_cell_runs_once_in_order_and_no_more_than_there_are_workers(tmp_path, workers):
    ledger, launcher, scheduled = run(tmp_path, workers=workers)
    assert launcher.started == NAMES
    assert launcher.most_busy == min(workers, len(POINTS))
    assert statuses(ledger) == ["finished"] * 4
    assert set(scheduled.wall_seconds) == set(NAMES)
    assert not scheduled.running


def test_finished_cells_are_skipped(tmp_path):
    before = lambda ledger: finish(ledger.workdir_of(NAMES[1]), ledger.cells[1])
    _, launcher, _ = run(tmp_path, before=before)
    assert launcher.started == [NAMES[0], *NAMES[2:]]


def test_a_cell_that_failed_is_tried_again_by_the_next_start(tmp_path):
    before, _, first = run(tmp_path, ends={NAMES[1]: [RAISED]})
    assert statuses(before)[1] == "failed"
    ledger, launcher, second = run(tmp_path)
    both = first.wall_seconds[NAMES[1]] + second.wall_seconds[NAMES[1]]
    assert ledger.wall_seconds(ledger.cells[1]) == pytest.approx(both)
    assert launcher.started == [NAMES[1]]
    assert statuses(ledger) == ["finished"] * 4


def test_a_cell_that_raised_is_recorded_and_the_rest_goes_on(tmp_path):
    ledger, launcher, _ = run(tmp_path, ends={NAMES[0]: [RAISED]})
    assert launcher.started == NAMES
    assert statuses(ledger) == ["failed", "finished", "finished", "finished"]
    assert ledger.error(ledger.cells[0]) == "it raised"
    with (tmp_path / "sweep.csv").open(newline="") as file:
        assert [row["status"] for row in csv.DictReader(file)] == statuses(ledger)


@pytest.mark.parametrize("code", [KILLED, -signal.SIGSEGV, 128 + signal.SIGTERM, 128 + signal.SIGINT])
def test_a_killed_cell_is_started_again(tmp_path, code):
    ledger, launcher, _ = run(tmp_path, ends={NAMES[0]: [code]}, workers=1)
    assert launcher.started == [*NAMES, NAMES[0]]
    assert statuses(ledger) == ["finished"] * 4


@pytest.mark.parametrize("number", StopRequest.SIGNALS)
@pytest.mark.parametrize("saved", [True, False], ids=["128 + n", "-n"])
def test_an_interrupted_cell_is_started_again_as_often_as_it_gets_on(tmp_path, number, saved):
    """No attempt is used up, whether the run could answer the signal or the process ended at once."""
    code = 128 + number if saved else -number
    steps = iter(range(1, 100))

    def save(stop):
        (tmp_path / "cells" / NAMES[0] / "checkpoints" / str(next(steps))).mkdir(parents=True)

    ledger, launcher, _ = run(tmp_path, POINTS[:1], ends={NAMES[0]: [code] * 20}, workers=1, retries=0, watch=save)
    assert launcher.started == [NAMES[0]] * 21
    assert statuses(ledger) == ["finished"]


def test_an_interrupted_cell_that_gets_nowhere_fails_in_the_end(tmp_path):
    ends = {NAMES[0]: [128 + signal.SIGUSR2] * 99}
    ledger, launcher, _ = run(tmp_path, ends=ends, workers=1, retries=0)
    assert launcher.started.count(NAMES[0]) == 1 + PATIENCE
    assert "interrupted 11 times (SIGUSR2) without a new checkpoint" in ledger.error(ledger.cells[0])
    assert statuses(ledger)[1:] == ["finished"] * 3


def test_kills_are_counted_apart_from_interruptions(tmp_path):
    ends = {NAMES[0]: [KILLED, 128 + signal.SIGTERM, -signal.SIGUSR1, KILLED]}
    ledger, launcher, _ = run(tmp_path, ends=ends, workers=1, retries=2)
    assert launcher.started.count(NAMES[0]) == 5
    assert statuses(ledger) == ["finished"] * 4


@pytest.mark.parametrize("retries", [0, 1, 2])
def test_but_not_forever(tmp_path, retries):
    ledger, launcher, _ = run(tmp_path, ends={NAMES[0]: [KILLED] * 9}, retries=retries)
    assert launcher.started.count(NAMES[0]) == 1 + retries
    assert statuses(ledger) == ["failed", "finished", "finished", "finished"]
    assert "killed by signal 9 (9: often out of memory)" in ledger.error(ledger.cells[0])


@pytest.mark.parametrize("code", [3, 2, 137])
def test_an_exit_code_without_a_record_is_a_failure(tmp_path, code):
    ledger, launcher, _ = run(tmp_path, ends={NAMES[0]: [code]})
    assert launcher.started == NAMES
    assert f"ended with exit code {code}" in ledger.error(ledger.cells[0])


def test_a_cell_that_ends_well_without_a_result_is_a_failure(tmp_path):
    class Silent(Handle):
        def poll(self):
            return 0

    ledger = Ledger(tmp_path, cells_of(POINTS[:1]))
    ledger.open(add_cells=False)
    launcher = Script(ledger, {})
    launcher.start = lambda workdir, worker: Silent(launcher, workdir, worker, 0)
    Scheduler(ledger, launcher, 1, retries=3).run(ledger.cells, StopRequest(), lambda: None)
    assert "ended with exit code 0" in ledger.error(ledger.cells[0])


def test_twins_wait_for_the_training(tmp_path):
    ledger, launcher, _ = run(tmp_path, points=TWINS, workers=3)
    assert launcher.started == [cell.name for cell in ledger.cells]
    assert launcher.most_busy == 2, "the two that evaluate"
    assert statuses(ledger) == ["finished"] * 3


def test_others_go_ahead_of_waiting_twins(tmp_path):
    _, launcher, _ = run(tmp_path, points=TWINS[:2] + POINTS[:1], workers=2)
    assert launcher.started == ["eval_capacity_factor=1.0,seed=0", NAMES[0], "eval_capacity_factor=2.0,seed=0"]


@pytest.mark.parametrize("ends", [[RAISED], [KILLED, KILLED]])
def test_twins_fail_with_the_training(tmp_path, ends):
    first = "eval_capacity_factor=1.0,seed=0"
    ledger, launcher, _ = run(tmp_path, points=TWINS, ends={first: ends}, workers=2)
    assert set(launcher.started) == {first}
    assert statuses(ledger) == ["failed"] * 3
    assert ledger.error(ledger.cells[2]) == f"{first}, which trains the same, did not finish"


def test_twins_of_a_killed_training_wait_for_its_second_attempt(tmp_path):
    first, *others = [f"eval_capacity_factor={point}.0,seed=0" for point in (1, 2, 3)]
    ledger, launcher, _ = run(tmp_path, points=TWINS, ends={first: [KILLED]}, workers=2)
    assert launcher.started == [first, first, *others]
    assert statuses(ledger) == ["finished"] * 3


@pytest.mark.parametrize("number", StopRequest.SIGNALS)
def test_a_stop_request_is_passed_on_and_waited_for(tmp_path, number):
    def watch(stop):
        stop.signal = number

    ledger, launcher, scheduled = run(tmp_path, ends={name: [HANGS] for name in NAMES}, workers=2, watch=watch)
    assert launcher.started == launcher.stopped == NAMES[:2]
    assert not scheduled.running
    assert statuses(ledger) == ["interrupted", "interrupted", "pending", "pending"]


def test_a_cell_that_finishes_while_it_is_asked_to_stop_is_finished(tmp_path):
    class Deaf(Handle):
        def stop(self):
            pass

    def watch(stop):
        stop.signal = signal.SIGINT

    ledger = Ledger(tmp_path, cells_of(POINTS))
    ledger.open(add_cells=False)
    launcher, stop = Script(ledger, {}), StopRequest()
    launcher.start = lambda workdir, worker: Deaf(launcher, workdir, worker, DONE)
    Scheduler(ledger, launcher, 1, retries=1).run(ledger.cells, stop, lambda: watch(stop))
    assert statuses(ledger) == ["finished", "pending", "pending", "pending"]


def test_nothing_starts_where_the_stop_came_first(tmp_path):
    ledger = Ledger(tmp_path, cells_of(POINTS))
    ledger.open(add_cells=False)
    launcher, stop = Script(ledger, {}), StopRequest()
    stop.signal = signal.SIGTERM
    Scheduler(ledger, launcher, 2, retries=1).run(ledger.cells, stop, lambda: None)
    assert not launcher.started


def test_what_cannot_be_started_fails_and_the_rest_goes_on(tmp_path, monkeypatch):
    start = Script.start

    def or_not(self, workdir, worker):
        if workdir.name == cells_of(POINTS)[0].name:
            raise OSError("no room")
        return start(self, workdir, worker)

    monkeypatch.setattr(Script, "start", or_not)
    ledger, _, _ = run(tmp_path)
    assert statuses(ledger) == ["failed", *["finished"] * (len(ledger.cells) - 1)]
    assert ledger.error(ledger.cells[0]) == "could not be started: no room"
