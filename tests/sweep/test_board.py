import io
import json
import time

import pytest
from rich.console import Console
from tiny_sweep import cells_of, finish

from moe_jax.sweep import board as board_module
from moe_jax.sweep.board import Board
from moe_jax.sweep.ledger import Ledger
from moe_jax.sweep.scheduler import Running, Scheduler

POINTS = [{"moe.capacity_factor": factor} for factor in (1.0, 2.0, 3.0)]
NAMES = [f"capacity_factor={factor},seed=0" for factor in (1.0, 2.0, 3.0)]
TRAIN = {"step": 4, "train/loss": 2.5, "train/tokens_per_second": 12_000.0}


@pytest.fixture(autouse=True)
def draw_every_time(monkeypatch):
    monkeypatch.setattr(board_module, "REFRESH_SECONDS", 0.0)


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path, cells_of(POINTS))
    ledger.open(add_cells=False)
    return ledger


class Nowhere:
    """A launcher, as the board needs none."""

    def start(self, workdir, worker):
        raise AssertionError


class Screen:
    """A board, what runs on it, and what it has shown."""

    def __init__(self, ledger, terminal):
        self.ledger, self.output = ledger, io.StringIO()
        scheduler = Scheduler(ledger, Nowhere(), workers=2, retries=0)
        self.running, self.wall_seconds = scheduler.running, scheduler.wall_seconds
        console = Console(file=self.output, force_terminal=terminal, width=140, color_system=None)
        self.board = Board(ledger, scheduler, 2, console)

    def start(self, index):
        self.running[index] = Running(self.ledger.cells[index], None, time.monotonic())

    def finish(self, index):
        del self.running[index]
        cell = self.ledger.cells[index]
        finish(self.ledger.workdir_of(cell.name), cell)
        self.wall_seconds[cell.name] = 60.0

    def fail(self, index, error):
        del self.running[index]
        self.ledger.fail(self.ledger.cells[index], error)

    def shown(self):
        """What came since the last call."""
        self.board.refresh()
        text = self.output.getvalue()
        self.output.seek(0)
        self.output.truncate()
        return text


def log(ledger, index, *values):
    path = ledger.workdir_of(NAMES[index]) / "metrics.jsonl"
    path.write_text("".join(f"{json.dumps(value)}\n" for value in values))
    return path


def test_without_a_terminal_there_is_a_line_for_every_change(ledger):
    screen = Screen(ledger, terminal=False)
    with screen.board:
        assert screen.shown() == ""
        screen.start(0)
        screen.start(1)
        assert screen.shown() == f"running  {NAMES[0]}\nrunning  {NAMES[1]}\n"
        assert screen.shown() == ""
        screen.finish(0)
        assert screen.shown().splitlines() == [
            f"finished  {NAMES[0]}",
            "1 finished, 1 pending, 1 running; about 1m00s left",
        ]
        screen.fail(1, "out of memory")
        assert screen.shown().splitlines()[0] == f"failed  {NAMES[1]}: out of memory"
    assert screen.shown() == ""


def test_in_a_terminal_a_table_shows_what_runs(ledger):
    log(ledger, 1, TRAIN | {"step": 2, "train/loss": 3.0}, TRAIN, {"step": 4, "eval/loss": 2.25})
    screen = Screen(ledger, terminal=True)
    with screen.board:
        screen.start(1)
        text = screen.shown()
    [row] = [line for line in text.splitlines() if NAMES[1] in line]
    for part in ("running", "4/8", "2.5000", "2.2500", "12k"):
        assert part in row
    assert text.index(NAMES[1]) < text.index(NAMES[0]), "what runs comes first"
    assert "2 pending, 1 running" in text


def test_in_a_terminal_an_error_is_told_once_and_whole(ledger):
    error = "data.source: " + "a long story " * 20
    screen = Screen(ledger, terminal=True)
    with screen.board:
        screen.start(1)
        screen.shown()
        screen.fail(1, error)
        first = screen.shown()
        second = screen.shown()
    assert error in first
    assert "a long story" not in second
    assert "failed" in second


@pytest.mark.parametrize("terminal", [True, False])
def test_an_error_may_look_like_markup(ledger, terminal):
    screen = Screen(ledger, terminal)
    with screen.board:
        screen.start(0)
        screen.shown()
        screen.fail(0, "[/tmp/x] is no [bold]folder[/bold]")
        assert "[/tmp/x] is no [bold]folder[/bold]" in screen.shown()


def test_a_line_that_is_being_written_is_not_read_yet(ledger):
    path = log(ledger, 0, TRAIN)
    path.write_text(path.read_text() + '{"step": 6, "train/lo')
    screen = Screen(ledger, terminal=True)
    with screen.board:
        screen.start(0)
        assert "4/8" in screen.shown()


def test_a_loss_that_diverged_is_shown(ledger):
    log(ledger, 0, TRAIN | {"train/loss": None})
    screen = Screen(ledger, terminal=True)
    with screen.board:
        screen.start(0)
        assert "nan" in screen.shown()


def test_a_long_sweep_keeps_what_runs_in_sight(tmp_path, monkeypatch):
    monkeypatch.setattr(board_module, "ROWS", 2)
    ledger = Ledger(tmp_path, cells_of(POINTS))
    ledger.open(add_cells=False)
    screen = Screen(ledger, terminal=True)
    with screen.board:
        screen.start(2)
        text = screen.shown()
    assert NAMES[2] in text
    assert NAMES[0] in text
    assert NAMES[1] not in text


def test_it_draws_at_most_once_in_a_while(ledger, monkeypatch):
    monkeypatch.setattr(board_module, "REFRESH_SECONDS", 1e6)
    screen = Screen(ledger, terminal=False)
    with screen.board:
        assert screen.shown() == ""
        screen.start(0)
        assert screen.shown() == ""
    assert screen.output.getvalue() == f"running  {NAMES[0]}\n", "the end is always shown"
