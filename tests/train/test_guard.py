"""What is not finite is skipped, told and in the end refused, and leaves no trace in the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams import metadata as hparams_metadata

from moe_jax.config.rules import DivergedError
from moe_jax.train.checkpoints import Checkpoints
from moe_jax.train.guard import Guard, check_finite
from moe_jax.train.loop import train
from moe_jax.train.setup import Setup

PARAMS = {"embedding": jnp.zeros(2), "layer": {"router": jnp.zeros(3)}}
FINE, NO_LOSS, NO_ROUTER = jnp.array([1, 1, 1], bool), jnp.array([0, 1, 1], bool), jnp.array([1, 1, 0], bool)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_a_step_that_is_not_finite_moves_nothing_but_what_counts_steps(set_up_once, optimizer):
    fields = {
        "train.optimizer": optimizer, "train.weight_decay": 0.1, "train.schedule": "cosine", "train.steps": 9,
        "train.warmup_steps": 4, "moe.bias_rate": 0.01, "moe.balance_loss": 0.0,
    }  # fmt: skip
    setup, state = set_up_once(fields)
    step = setup.compile_train_step()
    batches = setup.data.train_batches()
    batch, other = (setup.place(next(batches)) for _ in range(2))
    state, _ = step(state, batch)
    before = jax.device_get(state)
    poisoned = jax.device_put(poison(before), jax.tree.map(lambda leaf: leaf.sharding, state))
    after, metrics = step(poisoned, other)
    assert not np.asarray(metrics.finite).all()
    assert int(after.step) == int(before.step) + 1
    kept = lambda tree: {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path((tree.balance_bias, tree.opt_state))
    }
    moved = [name for name, leaf in kept(after).items() if not np.array_equal(leaf, kept(before)[name])]
    counts = [name for name in kept(before) if name.endswith(".count")]
    assert moved and set(moved) < set(counts), "moments, biases and Adam's own count are what they were"
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(after.params), poison(before).params)
    # The rate of the next step is that of its number.
    healed = jax.device_put(
        jax.device_get(after)._replace(params=before.params), jax.tree.map(lambda leaf: leaf.sharding, after)
    )
    _, metrics = step(healed, batch)
    assert float(metrics.learning_rate) == pytest.approx(setup.run.train.learning_rate * 2 / 4)
    assert np.asarray(metrics.finite).all()


def poison(state):
    return state._replace(params=state.params | {"head": np.full_like(state.params["head"], np.nan)})


def feed(guard, reports, first=1):
    for step, report in enumerate(reports, start=first):
        guard.add(step, step - 1, report)
    guard.read()


def test_skips_are_told_with_what_where_and_how_often(caplog):
    guard = Guard(PARAMS, max_skipped=2)
    feed(guard, [FINE, NO_LOSS, NO_ROUTER, FINE, NO_ROUTER])
    assert caplog.messages == [
        "Skipped the update of step 2 (batch 1 of the data): not finite is the loss (1 in a row)",
        "Skipped the update of step 3 (batch 2 of the data): not finite is the gradient of layer/router (2 in a row)",
        "Skipped the update of step 5 (batch 4 of the data): not finite is the gradient of layer/router (1 in a row)",
    ]
    assert (guard.skipped, guard.in_a_row) == (3, 1)


@pytest.mark.parametrize("allowed", [0, 1, 3])
def test_one_more_in_a_row_than_allowed_ends_the_run(allowed):
    guard = Guard(PARAMS, allowed)
    feed(guard, [FINE] + [NO_LOSS] * allowed)
    line = (
        rf"{allowed + 1} updates in a row .* train.max_skipped={allowed}; step 9 \(batch 8 of the data\): .* the loss"
    )
    with pytest.raises(DivergedError, match=line):
        feed(guard, [NO_LOSS], first=9)


def test_reports_are_read_one_step_late():
    """So the device has its next step before the host looks at the last one."""
    guard = Guard(PARAMS, 0)
    guard.add(1, 0, NO_LOSS)
    assert guard.skipped == 0
    with pytest.raises(DivergedError):
        guard.add(2, 1, FINE)


def test_weights_that_are_not_finite_are_named():
    check_finite(PARAMS)
    with pytest.raises(DivergedError, match=r"weights are not finite \(layer/router\)"):
        check_finite(PARAMS | {"layer": {"router": jnp.array([0.0, jnp.inf, 0.0])}})


@pytest.fixture
def nan_from(monkeypatch):
    """nan_from(step): from that step on (or only at it), the weights that a step starts from are poisoned."""

    def patch(first, last=10**9):
        compile_step = Setup.compile_train_step

        def compiled(self):
            step = compile_step(self)

            def poison(state, batch):
                number = int(state.step) + 1
                if not first <= number <= last:
                    return step(state, batch)
                params = jax.tree.map(jnp.copy, state.params)
                after, metrics = step(state._replace(params=jax.tree.map(lambda x: x * jnp.nan, state.params)), batch)
                return after._replace(params=params), metrics

            return poison

        monkeypatch.setattr(Setup, "compile_train_step", compiled)

    return patch


def test_a_run_that_diverges_keeps_its_finite_checkpoint_and_ends_as_a_failure(make_run, tmp_path, nan_from):
    nan_from(4)
    run = make_run({"train.steps": 9, "train.max_skipped": 2, "checkpoint.every": 1, "checkpoint.keep": 2})
    with pytest.raises(DivergedError, match=r"3 updates in a row .* step 6 \(batch 5 of the data\)"):
        train(run, tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]
    assert not (tmp_path / "summary.json").exists()
    events = EventAccumulator(str(tmp_path / "tensorboard/hparams")).Reload()
    ended = events.SummaryMetadata(hparams_metadata.SESSION_END_INFO_TAG).plugin_data.content
    assert hparams_metadata.parse_session_end_info_plugin_data(ended).status == api_pb2.STATUS_FAILURE


def test_a_bad_batch_is_passed_and_counted_over_all_lives_of_the_run(make_run, tmp_path, nan_from, caplog):
    nan_from(3, 3)
    fields = {"train.steps": 4, "checkpoint.every": 3, "log.every": 1}
    assert train(make_run(fields), tmp_path) == 0
    assert "Skipped the update of step 3 (batch 2 of the data)" in caplog.text
    with Checkpoints(tmp_path) as checkpoints:
        assert sorted(checkpoints._manager.all_steps()) == [4]  # none was begun right behind a skipped update
    assert train(make_run(fields | {"train.steps": 6}), tmp_path) == 0
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [line.count('"train/skipped_updates": 1.0') for line in lines if "skipped" in line] == [0, 0, 1, 1, 1, 1]
