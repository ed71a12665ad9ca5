import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe_jax.data.pipeline import Batch
from moe_jax.journal.metrics import MetricsWriter
from moe_jax.moe.losses import balance_loss, importance_loss, z_loss
from moe_jax.optim.optimizer import learning_rate
from moe_jax.train.shown import curves, write_pictures
from moe_jax.train.state import Variables
from moe_jax.train.step import Losses, _make_loss, _over_micro_batches

DENSE = {"moe.num_experts": 0}
NO_DROPS = {"moe.capacity_factor": 4.0, "moe.balance_loss": 0.0}
NOISY = {"moe.jitter": 0.3, "train.schedule": "cosine", "train.warmup_steps": 4}
VALID = [16, 3, 0, 10, 16, 1, 7, 16]  # leading positions of each sequence that count


def make_batch(valid=VALID):
    """Random bytes; sequence i has `valid[i]` tokens and padding behind."""
    tokens = np.random.RandomState(0).randint(32, 127, (len(valid), 17)).astype(np.int32)
    documents = (np.arange(16) < np.array(valid)[:, None]).astype(np.int32)
    return Batch(tokens[:, :-1], tokens[:, 1:], documents, documents > 0, np.zeros(len(valid), np.int32))


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
    assert whole_moe[0].routing[0]["dropped_fraction"].tolist() == [0.0]
    by_micro_batch = {"auxiliary": {}, "max_violation_micro_batch": 0}
    assert_close(metrics._replace(**by_micro_batch), whole_moe[0]._replace(**by_micro_batch))
    assert_close(gradients, whole_moe[1])


def test_padding_counts_for_nothing(step_of, whole):
    """Only valid targets make up the loss: other tokens in the padding change neither it nor any gradient."""
    batch = make_batch()
    other = np.where(batch.documents > 0, 0, 7)
    metrics, gradients, _ = take_step(step_of, DENSE, batch=batch._replace(targets=batch.targets + other))
    assert_close((metrics.loss, gradients), (whole[0].loss, whole[1]), rtol=0, atol=0)


def test_loss_is_a_mean_over_tokens_not_sequences(step_of, whole):
    """Two parts of the batch, weighted by their tokens, make up the whole."""
    parts = [make_batch([length if i % 2 == part else 0 for i, length in enumerate(VALID)]) for part in (0, 1)]
    losses = [take_step(step_of, DENSE, batch=part)[0].loss for part in parts]
    tokens = [int((part.documents > 0).sum()) for part in parts]
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
    scalars = curves(jax.device_get(metrics))
    assert math.isnan(scalars["train/loss"]) and math.isnan(scalars["train/grad_norm"])
    with MetricsWriter(tmp_path) as writer:
        writer.scalars(1, scalars)
        write_pictures(writer, 1, jax.device_get(metrics))
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line["train/loss"] is None and line["train/grad_norm"] is None


def test_the_loss_weighs_each_auxiliary_loss_by_its_own_coefficient(set_up_once):
    """Value and gradient of the total are those of its parts, which are made of the routing's sums."""
    weights = {"moe.balance_loss": 0.3, "moe.z_loss": 0.07, "moe.importance_loss": 0.2}
    setup, state = set_up_once({"model.num_layers": 2, **weights})
    batch, micro_batches = setup.place(make_batch()), 2
    tokens = jnp.sum(batch.documents > 0)
    loss = _make_loss(setup.task, setup.mesh, setup.model)

    @jax.jit
    def parts_and_gradients(params):
        def parts(params):
            total, losses = loss(params, state.variables, batch, jax.random.key(0), tokens, micro_batches, None)
            auxiliary = [losses.auxiliary[name] for name in ("balance_loss", "z_loss", "importance_loss")]
            return (total, losses.task, *auxiliary), losses.sums

        values, pull, sums = jax.vjp(parts, params, has_aux=True)
        basis = [tuple(jnp.float32(i == j) for j in range(5)) for i in range(5)]
        return values, [pull(cotangent)[0] for cotangent in basis], sums

    values, gradients, (sums,) = jax.device_get(parts_and_gradients(state.params))
    sums = jax.tree.map(jnp.asarray, sums)
    weigh = lambda cross_entropy, balance, z, importance: cross_entropy + 0.3 * balance + 0.07 * z + 0.2 * importance
    np.testing.assert_allclose(values[0], weigh(*values[1:]), rtol=1e-6)
    assert_close(gradients[0], jax.tree.map(weigh, *gradients[1:]), rtol=1e-4)
    np.testing.assert_allclose(values[2], np.sum(balance_loss(sums)) / micro_batches, rtol=1e-6)
    np.testing.assert_allclose(values[3], np.sum(z_loss(sums)) / micro_batches, rtol=1e-6)
    np.testing.assert_allclose(values[4], np.sum(importance_loss(sums)) / micro_batches, rtol=1e-6)
    norms = [optax.global_norm(gradient) for gradient in gradients]
    assert min(norms) > 1e-2  # else a wrong weight could go unseen
    assert min(abs(norms[i] - norms[j]) for i, j in ((2, 3), (2, 4), (3, 4))) > 1e-2


def test_accumulation_takes_the_mean_of_the_auxiliary_losses(step_of):
    """Two micro-batches of the same sequences make up one: each holds every other row of a batch of pairs."""
    fields = {"moe.balance_loss": 0.5, "moe.z_loss": 0.5, "train.clip_norm": 0.0}
    batch = make_batch(VALID[:4])
    pairs = jax.tree.map(lambda rows: np.repeat(rows, 2, axis=0), batch)
    one, one_gradients, _ = take_step(step_of, fields | {"data.batch_size": 4}, batch=batch)
    two, two_gradients, _ = take_step(step_of, fields | {"train.accumulate": 2}, batch=pairs)
    assert one.auxiliary.keys() == {"balance_loss", "z_loss"} and min(one.auxiliary.values()) > 0
    assert_close((two.loss, two.auxiliary), (one.loss, one.auxiliary))
    assert_close(two_gradients, one_gradients)


def test_every_micro_batch_has_noise_of_its_own():
    """A gradient that is nothing but a draw, in the place of its micro-batch."""
    batch = jax.tree.map(jnp.asarray, make_batch([16] * 3)._replace(domain=np.arange(3, dtype=np.int32)))

    def draw(variables, part, key, tokens, micro_batches, before):
        place = jax.nn.one_hot(part.domain[0], micro_batches)
        losses = Losses(jnp.zeros(()), {"z_loss": jnp.zeros(())}, None, ())
        return (jnp.zeros(()), losses), place * jax.random.uniform(key)

    draws, _ = _over_micro_batches(draw, 3, Variables(jnp.int32(0), {}, {}), batch, jnp.int32(1), jax.random.key(0))
    again, _ = _over_micro_batches(draw, 3, Variables(jnp.int32(0), {}, {}), batch, jnp.int32(1), jax.random.key(0))
    assert np.all(draws > 0) and len(np.unique(draws)) == 3
    np.testing.assert_array_equal(draws, again)


def step_at(step_of, fields, number):
    """Metrics of step `number` from the initial weights."""
    setup, state, step = step_of(fields)
    state = state._replace(step=jax.device_put(jnp.int32(number), state.step.sharding))
    return jax.device_get(step(state, setup.place(make_batch()))[1])


def test_every_step_has_noise_of_its_own_and_it_is_always_the_same(step_of):
    first, again, second = (step_at(step_of, NOISY, number).auxiliary["z_loss"] for number in (0, 0, 1))
    assert first == again
    assert abs(second - first) > 1e-5


def test_the_temperature_is_that_of_the_step_in_training_and_in_evaluation(step_of):
    """From 2 to 1/2: the last of six steps is like the first one with router weights four times as large."""
    fields = {"moe.temperature": 2.0, "moe.final_temperature": 0.5}
    batch, evaluate = step_of(fields)[0].place(make_batch()), step_of(fields)[0].compile_eval_step()

    def losses(number, factor):
        _, state, step = step_of(fields)
        scale = lambda path, weight: weight * (factor if "'router'" in jax.tree_util.keystr(path) else 1)
        params = jax.tree.map_with_path(scale, state.params)
        state = state._replace(step=jax.device_put(jnp.int32(number), state.step.sharding), params=params)
        nats = evaluate(state.variables, batch)[0].nats
        metrics = step(state, batch)[1]
        return jax.device_get([metrics.loss, metrics.auxiliary["z_loss"], nats[0]])

    last = losses(5, 1)
    np.testing.assert_array_equal(last, losses(0, 4))
    assert np.all(np.not_equal(last, losses(0, 1)))


def test_the_learning_rate_reported_is_that_of_the_step_taken(step_of):
    rate = learning_rate(step_of(NOISY)[0].run.train)
    reported = [step_at(step_of, NOISY, number).learning_rate for number in (0, 1)]
    np.testing.assert_allclose(reported, [rate(0), rate(1)], rtol=1e-6)
    assert reported[0] == 0 < reported[1]
