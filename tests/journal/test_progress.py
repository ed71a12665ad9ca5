import io

import pytest

from moe_jax.journal.progress import CLEAR_LINE, Progress, duration, quantity


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    return Terminal()


def last_line(stream):
    return stream.getvalue().split(CLEAR_LINE)[-1]


def test_shows_step_percent_loss_speed_and_time_left(terminal):
    clock = Clock()
    progress = Progress(1000, 0, 100, "tokens/s", terminal, clock)
    progress.update(1)
    assert last_line(terminal) == "step 1/1000  0.1%  ? tokens/s  ? left"
    clock.now = 20.0
    progress.update(11, 4.5)
    assert last_line(terminal) == "step 11/1000  1.1%  loss 4.5000  50 tokens/s  32m58s left"
    clock.now = 22.0
    progress.update(12)
    assert last_line(terminal).startswith("step 12/1000  1.2%  loss 4.5000")
    assert "\n" not in terminal.getvalue()


def test_time_left_follows_a_moving_average(terminal):
    clock = Clock()
    progress = Progress(10_000, 0, 100, "tokens/s", terminal, clock)
    for step in range(1, 1001):  # a step a second, for long
        clock.now += 1
        progress.update(step, 1.0)
    assert last_line(terminal).endswith("2h30m left")
    clock.now += 6  # one slow step moves the estimate, but does not make it six times as long
    progress.update(1001, 1.0)
    assert last_line(terminal).endswith("2h42m left")


def test_continues_from_the_restored_step(terminal):
    clock = Clock()
    progress = Progress(200, 100, 100, "tokens/s", terminal, clock)
    progress.update(101, 1.0)
    clock.now = 1.0
    progress.update(102, 1.0)
    assert last_line(terminal).startswith("step 102/200  51.0%") and last_line(terminal).endswith("1m38s left")


def test_draws_ten_times_a_second_and_always_the_last_step(terminal):
    clock = Clock()
    progress = Progress(1000, 0, 100, "tokens/s", terminal, clock)
    for step in range(1, 1001):
        clock.now = step / 1000
        progress.update(step, 1.0)
    assert 9 <= terminal.getvalue().count(CLEAR_LINE) <= 12
    assert last_line(terminal).startswith("step 1000/1000  100.0%") and last_line(terminal).endswith("0s left")


def test_a_note_stands_above_the_line(terminal):
    progress = Progress(10, 0, 100, "tokens/s", terminal, Clock())
    progress.note("before any step")
    progress.update(1, 2.0)
    line = last_line(terminal)
    progress.note("eval loss 1.9")
    assert terminal.getvalue() == f"before any step\n{CLEAR_LINE}{line}{CLEAR_LINE}eval loss 1.9\n{CLEAR_LINE}{line}"


def test_close_ends_the_line_once(terminal):
    progress = Progress(10, 0, 100, "tokens/s", terminal, Clock())
    progress.close()
    assert terminal.getvalue() == ""
    progress.update(10, 2.0)
    progress.close()
    progress.close()
    assert terminal.getvalue().count("\n") == 1 and terminal.getvalue().endswith("left\n")


def test_never_wraps(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    terminal = Terminal()
    Progress(10, 0, 100, "tokens/s", terminal, Clock()).update(1, 2.0)
    assert last_line(terminal) == "step 1/10  10.0%  l"


def test_without_a_terminal_only_notes_are_written():
    stream = io.StringIO()
    progress = Progress(10, 0, 100, "tokens/s", stream, Clock())
    progress.update(1, 2.0)
    assert stream.getvalue() == ""
    progress.note("eval loss 1.9")
    progress.update(10, 2.0)
    progress.close()
    assert stream.getvalue() == "eval loss 1.9\n"


def test_without_a_terminal_the_log_shows_the_time_left_within_seconds_and_then_now_and_then(caplog):
    caplog.set_level("INFO")
    clock = Clock()
    progress = Progress(1000, 0, 100, "tokens/s", io.StringIO(), clock)
    for step in range(1, 101):
        clock.now = float(step)
        progress.update(step, 2.0 if step > 50 else None)
    assert [message.split("  ") for message in caplog.messages] == [
        ["step 6/1000", "0.6%", "100 tokens/s", "16m34s left"],
        ["step 36/1000", "3.6%", "100 tokens/s", "16m04s left"],
        ["step 66/1000", "6.6%", "loss 2.0000", "100 tokens/s", "15m34s left"],
        ["step 96/1000", "9.6%", "loss 2.0000", "100 tokens/s", "15m04s left"],
    ]


class Gone(Terminal):
    """A terminal whose other end was closed."""

    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")


def test_a_terminal_that_has_gone_ends_nothing():
    progress = Progress(10, 0, 100, "tokens/s", Gone(), Clock())
    progress.update(1, 2.0)
    progress.note("eval loss 1.9")
    progress.close()


def test_a_diverged_loss_is_shown(terminal):
    Progress(10, 0, 100, "tokens/s", terminal, Clock()).update(1, float("nan"))
    assert "loss nan" in last_line(terminal)


@pytest.mark.parametrize(
    "number, text", [(0.0, "0"), (950.0, "950"), (999.9, "1k"), (12_345.0, "12.3k"), (4.56e6, "4.56M"), (2.5e9, "2.5G")]
)
def test_quantity(number, text):
    assert quantity(number) == text


@pytest.mark.parametrize(
    "seconds, text", [(0.2, "0s"), (42, "42s"), (185, "3m05s"), (59.7, "1m00s"), (8040, "2h14m"), (97_300, "1d03h")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text
