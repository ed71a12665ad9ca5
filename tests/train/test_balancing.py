"""Balancing over whole steps: the bias, the loads that it and the losses see, and models whose MoE layers differ."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.config.layers import moe_segments
from moe_jax.data.pipeline import Batch
from moe_jax.moe.losses import balance_loss
from moe_jax.moe.measures import stats_of_layers
from moe_jax.train.checkpoints import Checkpoints, HostState
from moe_jax.train.shown import curves
from moe_jax.train.step import _make_loss

BIAS = {
    "model.num_layers": 2, "moe.router": "top_k", "moe.top_k": 2, "moe.bias_rate": 0.01, "moe.capacity_factor": 4.0,
    "moe.balance_loss": 0.0,
}  # fmt: skip
BY_LAYER = {
    "model.num_layers": 3, "moe.router": "top_k", "moe.num_experts": 4, "moe.top_k": 2,
    "moe.num_experts_by_layer": (2, 4, 4), "moe.top_k_by_layer": (1, 2, 2), "moe.bias_rate": 0.01,
}  # fmt: skip


def make_batch(seed=0, rows=8):
    tokens = np.random.RandomState(seed).randint(32, 127, (rows, 17)).astype(np.int32)
    documents = (np.arange(16) < np.array([16, 3, 16, 10, 16, 1, 7, 16])[:rows, None]).astype(np.int32)
    return Batch(tokens[:, :-1], tokens[:, 1:], documents, documents > 0, np.zeros(rows, np.int32))


def take(setup, state, steps, compiled=None):
    """States and metrics after each of `steps` steps on batches of their own, on the host."""
    step = compiled or setup.compile_train_step()
    history = []
    for number in range(steps):
        state, metrics = step(state, setup.place(make_batch(number)))
        history.append(jax.device_get((state, metrics)))
    return history


def counts(metrics):
    """Choices of each expert: 85 valid tokens, two each."""
    assert make_batch().documents.sum() == 85
    return load(metrics) * 85 * 2 / 4


def of_layers(metrics, name):
    """A statistic of all layers."""
    return stats_of_layers(metrics.routing)[name]


def load(metrics):
    return of_layers(metrics, "load")


def max_violation(metrics):
    return of_layers(metrics, "max_violation")


def biases(state):
    return np.concatenate([np.asarray(leaf) for leaf in jax.tree.leaves(state.balance_bias)])


@pytest.mark.parametrize("update", ["sign", "proportional"])
def test_the_bias_follows_the_loads_of_each_step_until_it_stops(set_up_once, update):
    history = take(*set_up_once(BIAS | {"moe.bias_update": update, "moe.bias_steps": 3}), steps=5)
    expected = np.zeros((2, 4))
    for number, (state, metrics) in enumerate(history):
        error = 1 - load(metrics)
        if number < 3:
            expected += 0.01 * (np.sign(np.round(error, 4)) if update == "sign" else error)
        np.testing.assert_allclose(biases(state), expected, rtol=1e-4, atol=1e-7)
    assert np.all(np.max(np.abs(expected), axis=-1) > 0)
    assert np.any(expected[0] != expected[1])


def test_a_model_without_a_bias_has_none(set_up_once):
    setup, state = set_up_once()
    assert not jax.tree.leaves(state.balance_bias)
    assert not jax.tree.leaves(setup.model.balance_bias)


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_move_the_bias_once_by_the_loads_of_all(set_up_once, parts):
    """Without drops every token's route is that of the whole batch."""
    (whole, whole_metrics), *_ = take(*set_up_once(BIAS), steps=1)
    (cut, cut_metrics), *_ = take(*set_up_once(BIAS | {"train.accumulate": parts}), steps=1)
    np.testing.assert_array_equal(biases(cut), biases(whole))
    assert set(np.round(np.abs(np.unique(biases(whole))), 6)) <= {0.0, np.float32(0.01).round(6)}
    np.testing.assert_array_equal(cut.window, whole.window)
    np.testing.assert_allclose(max_violation(cut_metrics), max_violation(whole_metrics), rtol=1e-6)
    assert np.all(np.abs(cut_metrics.max_violation_micro_batch - whole_metrics.max_violation_micro_batch) > 1e-3)


def test_max_violation_of_micro_batches_is_a_mean_over_them(set_up_once):
    """Each micro-batch, every second row, as a batch of its own."""
    fields = BIAS | {"train.accumulate": 2}
    (_, metrics), *_ = take(*set_up_once(fields), steps=1)
    setup, state = set_up_once(BIAS)
    step = setup.compile_train_step()
    alone = []
    for part in range(2):
        batch = make_batch()
        batch = batch._replace(documents=np.where(np.arange(8)[:, None] % 2 == part, batch.documents, 0))
        _, state = set_up_once(BIAS)
        alone.append(max_violation(jax.device_get(step(state, setup.place(batch))[1])))
    np.testing.assert_allclose(metrics.max_violation_micro_batch, np.mean(alone, axis=0), rtol=1e-5)
    assert np.all(alone[0] != alone[1])


def test_the_window_holds_the_loads_since_the_last_log(set_up_once):
    """log.every=2: steps 1, 1 and 2, 3, 3 and 4, 5."""
    history = take(*set_up_once(BIAS), steps=5)
    loads = [counts(metrics) for _, metrics in history]
    for number, (state, metrics) in enumerate(history):
        covered = sum(loads[number - number % 2 : number + 1])
        np.testing.assert_allclose(np.concatenate(state.window), covered, rtol=1e-5)
        expected = covered.max(-1) / covered.mean(-1) - 1
        np.testing.assert_allclose(metrics.max_violation_window, expected, rtol=1e-5)
        assert curves(metrics)["moe/max_violation_window"] == pytest.approx(expected.mean(), rel=1e-5)


def test_global_batch_is_micro_batch_without_accumulation_and_counts_on_with_it(set_up_once):
    plain, scoped = {"moe.balance_loss": 0.1}, {"moe.balance_loss": 0.1, "moe.balance_scope": "global_batch"}
    run = lambda fields: take(*set_up_once(BIAS | fields), steps=1)[0]
    (one, _), (other, _) = run(plain), run(scoped)
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    (_, mean), (_, counted) = (run(fields | {"train.accumulate": 4}) for fields in (plain, scoped))
    np.testing.assert_allclose(mean.loss, counted.loss, rtol=1e-6)

    setup, state = set_up_once(BIAS | plain)
    loss = jax.jit(_make_loss(setup.task, setup.mesh, setup.model), static_argnums=5)
    before, by_micro_batch, alone = jnp.zeros((2, 4)), [], []
    for part in range(4):
        batch = setup.place(jax.tree.map(lambda rows, part=part: rows[part::4], make_batch()))
        (sums,) = loss(state.params, state.variables, batch, jax.random.key(0), jnp.int32(1), 1, None)[1].sums
        by_micro_batch.append(jnp.sum(balance_loss(sums, before)))
        alone.append(jnp.sum(balance_loss(sums)))
        before = before + sums["choices"]
    of_steps = [metrics.auxiliary["balance_loss"] for metrics in (counted, mean)]
    np.testing.assert_allclose(of_steps, [np.mean(by_micro_batch), np.mean(alone)], rtol=1e-5)
    assert abs(of_steps[1] - of_steps[0]) > 1e-4


def test_a_checkpoint_holds_the_bias_and_the_window(set_up_once, tmp_path):
    setup, state = set_up_once(BIAS)
    step = setup.compile_train_step()
    for number in range(3):
        state, _ = step(state, setup.place(make_batch(number)))
    with Checkpoints(tmp_path, setup.run.checkpoint) as checkpoints:
        checkpoints.save(state, HostState(3))
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(setup.shapes).state
    assert np.any(biases(restored) != 0)
    assert np.any(restored.window[0] != 0)
    for number in range(3, 6):
        state, metrics = step(state, setup.place(make_batch(number)))
        restored, again = step(restored, setup.place(make_batch(number)))
        jax.tree.map(np.testing.assert_array_equal, jax.device_get((state, metrics)), jax.device_get((restored, again)))


def test_evaluation_routes_by_the_bias(set_up_once):
    """A bias that outweighs any probability sends every token to experts 2 and 3."""
    setup, state = set_up_once(BIAS)
    towards = jax.tree.map(lambda bias: bias + jnp.array([0.0, 0, 5, 5]), state.balance_bias)
    variables = state.variables._replace(balance_bias=towards)
    _, (sums,) = jax.jit(setup.compile_eval_step())(variables, setup.place(make_batch()))
    np.testing.assert_array_equal(sums["choices"], [[0, 0, 85, 85]] * 2)


def test_a_bias_reduces_max_violation(set_up_once):
    """After a hundred steps on one batch, from a router that is surer than at the start of a run."""

    def last(fields):
        setup, state = set_up_once(BIAS | fields)
        for segment in state.params["segments"].values():
            for block in segment["blocks"].values():
                router = block["moe"]["router"]
                router["weight"] = router["weight"] * 3
        step = setup.compile_train_step()
        batch, history = setup.place(make_batch()), []
        for _ in range(100):
            state, metrics = step(state, batch)
            history.append(float(np.mean(max_violation(metrics))))
        return np.mean(history[-20:])

    without, balanced = last({"moe.bias_rate": 0.0}), last({})
    assert balanced < 0.7 * without


@pytest.fixture(scope="module")
def layers_of_their_own(set_up_once):
    """(setup, history) of a model of three MoE layers of 2, 4 and 4 experts, 1, 2 and 2 of them a token."""
    setup, state = set_up_once(BY_LAYER | {"moe.importance_loss": 0.01, "moe.balance_scope": "sequence"})
    return setup, take(setup, state, steps=20)


def test_layers_of_their_own_numbers_of_experts_train(layers_of_their_own):
    setup, history = layers_of_their_own
    assert [(part.num_moe_layers, part.moe.num_experts, part.moe.top_k) for part in moe_segments(setup.run)] == [
        (1, 2, 1),
        (2, 4, 2),
    ]
    losses = [metrics.loss for _, metrics in history]
    assert np.mean(losses[-5:]) < losses[0] - 0.05
    by_layer = [jax.tree.leaves(state.balance_bias) for state, _ in history]
    assert [leaf.shape for leaf in by_layer[-1]] == [(1, 2), (2, 4)]
    assert all(np.any([leaves[part] for leaves in by_layer]) for part in range(2))


def test_statistics_of_layers_that_differ_are_padded_with_nan_on_the_host(layers_of_their_own):
    _, history = layers_of_their_own
    _, metrics = history[-1]
    assert [part["load"].shape for part in metrics.routing] == [(1, 2), (2, 4)]
    assert all(np.all(np.isfinite(array)) for array in jax.tree.leaves(metrics))
    missing = np.array([[False, False, True, True], [False] * 4, [False] * 4])
    by_rank = of_layers(metrics, "dropped_fraction_rank")
    np.testing.assert_array_equal(np.isnan(load(metrics)), missing)
    np.testing.assert_array_equal(np.isnan(by_rank), missing[:, 1:3])
    np.testing.assert_allclose(np.nanmean(load(metrics), axis=-1), 1, rtol=1e-6)
    assert max_violation(metrics).shape == metrics.max_violation_window.shape == (3,)
    scalars = curves(metrics)
    assert all(np.isfinite(value) for value in scalars.values())
    assert scalars["moe/dropped_fraction_rank_1"] == pytest.approx(by_rank[1:, 1].mean())
    assert scalars["moe/importance_loss"] > 0 and "moe/load_loss" not in scalars
