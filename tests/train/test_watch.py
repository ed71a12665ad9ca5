"""Spikes of the loss, and experts that are dead or take everything, are warned of once each."""

import numpy as np
import pytest

from moe_jax.train.watch import FEWEST, Watch

LAYERS = {"model.num_layers": 2, "moe.num_experts": 4}
EVEN = [100.0, 100, 100, 100]


@pytest.fixture
def watch(make_run):
    return Watch(make_run(LAYERS))


def see(watch, windows, per_token=1.0, layers=2):
    """The same window of choices in every layer, or one for each."""
    for step, window in enumerate(windows, start=1):
        counts = np.array(window if np.ndim(window[0]) else [window] * layers)
        watch.experts(20 * step, [counts], [np.full(len(counts), per_token)])


def test_a_spike_is_told_once_and_again_after_it_is_over(watch, caplog):
    losses = [3.0 + 0.01 * (i % 3) for i in range(FEWEST)] + [3.0, 4.5, 5.0, 3.0, 3.1, 4.6]
    for step, loss in enumerate(losses):
        watch.loss(step, loss)
    assert [message.split(" (")[0] for message in caplog.messages] == [
        f"Step {FEWEST + 1}: the loss has jumped to 4.5000",
        f"Step {FEWEST + 5}: the loss has jumped to 4.6000",
    ]


def test_no_spike_in_a_loss_that_falls_or_is_noisy_or_not_finite(watch, caplog):
    random = np.random.RandomState(0)
    for step in range(400):
        watch.loss(step, 5 / (1 + step / 50) + 0.02 * random.randn())
    watch.loss(400, float("nan"))
    assert caplog.messages == []


def test_a_noisy_loss_has_to_jump_further(watch, caplog):
    """20% above the median, but no more than three median deviations."""
    for step in range(FEWEST):
        watch.loss(step, 2.8 if step % 2 else 3.2)
    watch.loss(FEWEST, 3.6)
    assert caplog.messages == []
    watch.loss(FEWEST + 1, 9.0)
    assert len(caplog.messages) == 1


def test_a_steady_loss_may_rise_a_little(watch, caplog):
    """Hundreds of median deviations, but no more than 5% above the median."""
    for step in range(FEWEST):
        watch.loss(step, 3.0 + 1e-4 * (step % 2))
    watch.loss(FEWEST, 3.15)
    assert caplog.messages == []


def test_a_dead_expert_is_told_with_its_layer(watch, caplog):
    alive, dead = EVEN, [200.0, 100, 100, 0]
    see(watch, [[alive, dead]] * 5)
    assert caplog.messages == ["Step 60: MoE layer 1: expert 3 took no token in the last 3 logged windows"]


def test_one_quiet_window_is_no_death(watch, caplog):
    see(watch, [[200.0, 100, 100, 0], [200.0, 100, 100, 0], EVEN, [200.0, 100, 100, 0]])
    assert caplog.messages == []


def test_an_expert_that_takes_everything(watch, caplog):
    see(watch, [[[397.0, 1, 1, 1], EVEN]] * 3)
    assert caplog.messages == [
        "Step 60: MoE layer 0: expert 0 took more than 90% of the tokens in the last 3 logged windows"
    ]


def test_with_two_choices_a_token_half_of_all_choices_is_everything(make_run, caplog):
    watch = Watch(make_run({"moe.num_experts": 8, "moe.router": "top_k", "moe.top_k": 2}))
    see(watch, [[400.0, 58, 57, 57, 57, 57, 57, 57]] * 3, per_token=2.0, layers=1)
    assert [message.split(": ", 2)[2][:24] for message in caplog.messages] == ["expert 0 took more than "]


def test_every_token_of_two_experts_of_two_says_nothing(make_run, caplog):
    watch = Watch(make_run({"moe.num_experts": 2, "moe.router": "top_k", "moe.top_k": 2}))
    see(watch, [[400.0, 400.0]] * 3, per_token=2.0, layers=1)
    assert caplog.messages == []


def test_few_choices_say_nothing(watch, caplog):
    see(watch, [[4.0, 0, 0, 0]] * 5)
    assert caplog.messages == []


def test_null_experts_are_no_experts(make_run, caplog):
    watch = Watch(make_run({"moe.num_experts": 2, "moe.null_experts": 2, "moe.router": "top_k"}))
    see(watch, [[100.0, 100, 0, 0]] * 4, layers=1)
    assert caplog.messages == []
