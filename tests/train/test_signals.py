"""Signals ask the loop to stop; a second Ctrl-C does not ask."""

import os
import signal

import pytest

from moe_jax.train.signals import StopRequest


@pytest.mark.parametrize("number", StopRequest.SIGNALS)
def test_a_signal_is_a_request_with_its_exit_code(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert (stop.signal, stop.exit_code) == (None, 0)
        os.kill(os.getpid(), number)
        assert (stop.signal, stop.exit_code) == (number, 128 + number)
    assert signal.getsignal(number) is before


def test_the_first_signal_counts_and_a_second_ctrl_c_is_not_held_back():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGHUP
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.signal is None
    finally:
        signal.signal(signal.SIGHUP, before)
