import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe_jax.data import Batch
from moe_jax.train import report
from moe_jax.train.metrics import MetricsWriter

DENSE = {"moe.num_experts": 0}
NO_DROPS = {"moe.capacity_factor": 4.0, "moe.balance_loss": 0.0}
VALID = [16, 3, 0, 10, 16, 1, 7, 16]  # leading positions of each sequence that count


def make_batch(valid=VALID):
    """Random bytes; sequence i has `valid[i]` tokens and padding behind."""
    tokens = np.random.RandomState(0).randint(32, 127, (len(valid), 17)).astype(np.int32)
    segments = (np.arange(16) < np.array(valid)[:, None]).astype(np.int32)
    return Batch(tokens[:, :-1], tokens[:, 1:], segments, np.zeros(len(valid), np.int32))


@pytest.fixture(scope="module")
def step_of(set_up_once):
    """step_of(fields, devices) -> (setup, fresh state, compiled step), compiled once for equal arguments."""
    compiled = {}

    def get(fields=None, devices=1):
        setup, state = set_up_once(fields, devices)
        key = json.dumps([fields, devices], sort_keys=True)
        if key not in compiled:
            compiled[key] = setup.compile_train_step()
        return setup, state, compiled[key]

    return get


def take_step(step_of, fields, devices=1, batch=None):
    """(metrics, gradients after clipping, the next parameters), on the host."""
    setup, state, step = step_of(fields, devices)
    state, metrics = step(state, setup.place(make_batch() if batch is None else batch))
    gradients = jax.tree.map(lambda moment: moment / (1 - setup.run.train.b1), optax.tree.get(state.opt_state, "mu"))
    return jax.device_get((metrics, gradients, state.params))


def assert_close(one, other, rtol=2e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), one, other)


@pytest.fixture(scope="module")
def whole(step_of):
    return take_step(step_of, DENSE)


@pytest.fixture(scope="module")
def whole_moe(step_of):
    return take_step(step_of, NO_DROPS)


def test_accumulation_is_one_large_batch(step_of, whole):
    metrics, gradients, _ = take_step(step_of, DENSE | {"train.accumulate": 4})
    assert_close([metrics.loss, metrics.grad_norm], [whole[0].loss, whole[0].grad_norm])
    assert_close(gradients, whole[1])


def test_accumulation_of_an_moe_on_a_mesh(step_of, whole_moe):
    fields = NO_DROPS | {"train.accumulate": 2, "mesh.data": 2, "mesh.expert": 2}
    metrics, gradients, _ = take_step(step_of, fields, devices=4)
    assert whole_moe[0].routing.dropped.tolist() == [0.0]
    assert_close(metrics._replace(balance_loss=0, z_loss=0), whole_moe[0]._replace(balance_loss=0, z_loss=0))
    assert_close(gradients, whole_moe[1])


def test_padding_counts_for_nothing(step_of, whole):
    """Only valid targets make up the loss: other tokens in the padding change neither it nor any gradient."""
    batch = make_batch()
    other = np.where(batch.segments > 0, 0, 7)
    metrics, gradients, _ = take_step(step_of, DENSE, batch=batch._replace(targets=batch.targets + other))
    assert_close((metrics.loss, gradients), (whole[0].loss, whole[1]), rtol=0, atol=0)


def test_loss_is_a_mean_over_tokens_not_sequences(step_of, whole):
    """Two parts of the batch, weighted by their tokens, make up the whole."""
    parts = [make_batch([length if i % 2 == part else 0 for i, length in enumerate(VALID)]) for part in (0, 1)]
    losses = [take_step(step_of, DENSE, batch=part)[0].loss for part in parts]
    tokens = [int((part.segments > 0).sum()) for part in parts]
    assert tokens == [39, 30]
    np.testing.assert_allclose(np.dot(losses, tokens) / sum(tokens), whole[0].loss, rtol=1e-6)
    assert abs(losses[0] - losses[1]) > 1e-3  # else the weights would not matter


def test_gradients_are_those_of_the_loss(step_of, whole):
    """Finite differences, through the loss that the step itself reports."""
    setup, _, step = step_of(DENSE)
    direction = jax.tree.map(lambda g: g / optax.global_norm(whole[1]), whole[1])

    def loss_at(distance):
        _, fresh, _ = step_of(DENSE)
        moved = jax.tree.map(lambda w, d: w + distance * d, fresh.params, direction)
        return float(step(fresh._replace(params=moved), setup.place(make_batch()))[1].loss)

    slope = (loss_at(1e-2) - loss_at(-1e-2)) / 2e-2
    np.testing.assert_allclose(slope, whole[0].grad_norm, rtol=1e-2)


def test_a_step_donates_its_state(step_of):
    setup, state, step = step_of(DENSE)
    after, _ = step(state, setup.place(make_batch()))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after))
    assert int(after.step) == 1


def test_a_small_head_starts_at_the_entropy_of_a_uniform_guess(step_of):
    """As with model.init_scale=1e-4: its square root is the scale of the head, and so of the logits."""
    setup, state, step = step_of(DENSE)
    params = state.params | {"head": state.params["head"] * 1e-2}
    _, metrics = step(state._replace(params=params), setup.place(make_batch()))
    np.testing.assert_allclose(metrics.loss, math.log(setup.run.model.vocab_size), atol=1e-2)


def test_a_repeated_batch_is_learnt(step_of, whole_moe):
    setup, state, step = step_of(NO_DROPS)
    batch, losses = setup.place(make_batch()), []
    for _ in range(30):
        state, metrics = step(state, batch)
        losses.append(float(metrics.loss))
    assert losses[0] == whole_moe[0].loss
    assert losses[-1] < 0.8 * losses[0]
    assert int(state.step) == 30


def test_nan_is_seen(step_of, tmp_path):
    setup, state, step = step_of(NO_DROPS)
    broken = jax.tree.map(lambda weight: weight * jnp.nan, state.params)
    _, metrics = step(state._replace(params=broken), setup.place(make_batch()))
    scalars = report.scalars(jax.device_get(metrics))
    assert math.isnan(scalars["train/loss"]) and math.isnan(scalars["train/grad_norm"])
    with MetricsWriter(tmp_path) as writer:
        writer.scalars(1, scalars)
        report.write_pictures(writer, 1, jax.device_get(metrics))
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line["train/loss"] is None and line["train/grad_norm"] is None
