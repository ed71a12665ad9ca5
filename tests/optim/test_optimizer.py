import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe_jax.config.schema import TrainConfig
from moe_jax.optim.optimizer import OPTIMIZERS, SCHEDULES, learning_rate, make_optimizer
from moe_jax.train.setup import set_up

PEAK = 0.5


def rates(at, **fields):
    schedule = learning_rate(TrainConfig(learning_rate=PEAK, **fields))
    return [float(schedule(jnp.asarray(step, jnp.int32))) for step in at]


@pytest.mark.parametrize(
    "schedule, expected",
    [
        # 4 steps of warm-up, then 8 to the end; half-way the cosine is half-way from 1 to the final 0.2.
        ("cosine", {0: 0, 1: 1 / 4, 4: 1, 8: 0.6, 12: 0.2, 20: 0.2}),
        ("rsqrt", {0: 0, 1: 1 / 4, 4: 1, 16: 1 / 2, 100: 1 / 5}),
        # The last 4 of 12 steps go down in a line.
        ("wsd", {0: 0, 2: 1 / 2, 4: 1, 7: 1, 8: 1, 9: 0.8, 10: 0.6, 12: 0.2, 20: 0.2}),
        ("constant", {0: 0, 3: 3 / 4, 4: 1, 12: 1, 1000: 1}),
    ],
)
def test_schedule_by_hand(schedule, expected):
    actual = rates(expected, schedule=schedule, warmup_steps=4, steps=12, decay_steps=4, final_learning_rate=0.2)
    np.testing.assert_allclose(actual, [PEAK * share for share in expected.values()], rtol=1e-6)


@pytest.mark.parametrize(
    "schedule, expected",
    [
        ("cosine", [1, (1 + math.cos(math.pi / 4)) / 2, 1 / 2, (1 - math.cos(math.pi / 4)) / 2, 0, 0]),
        ("rsqrt", [1, 1, 2**-0.5, 3**-0.5, 1 / 2, 5**-0.5]),
        ("wsd", [1, 1, 1, 1 / 2, 0, 0]),
        ("constant", [1, 1, 1, 1, 1, 1]),
    ],
)
def test_without_warmup_the_first_step_has_the_peak(schedule, expected):
    actual = rates(range(6), schedule=schedule, warmup_steps=0, steps=4, decay_steps=2, final_learning_rate=0.0)
    np.testing.assert_allclose(actual, [PEAK * share for share in expected], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup, decay", [(0, 0), (1, 0), (4, 0), (0, 4), (9, 0)])
def test_rates_are_finite_and_at_most_the_peak(schedule, warmup, decay):
    actual = rates(range(12), schedule=schedule, warmup_steps=warmup, steps=4, decay_steps=decay)
    assert all(math.isfinite(rate) and 0 <= rate <= PEAK for rate in actual), actual


def one_update(optimizer, gradients, state):
    updates, _ = optimizer.update(gradients, state.opt_state, state.params)
    return optax.apply_updates(state.params, updates)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_decay_in_proportion_to_the_rate_shrinks_matrices_and_no_norms(make_run, optimizer):
    setup = set_up(make_run({"train.optimizer": optimizer, "train.weight_decay": 0.1, "train.learning_rate": 0.5}))
    weights = jax.tree.map(lambda weight: jnp.ones(weight.shape), setup.shapes.params)

    @jax.jit
    def one_step(weights):
        zeros = jax.tree.map(jnp.zeros_like, weights)
        updates, _ = setup.optimizer.update(zeros, setup.optimizer.init(weights), weights)
        return optax.apply_updates(weights, updates)

    after = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(one_step(weights))}
    norms = {name for name in after if "norm" in name}
    assert (len(norms), len(after)) == (3, 12)  # else embedding, head, 4 of attention, router, 2 of experts
    for name, weight in after.items():
        np.testing.assert_allclose(weight, 1.0 if name in norms else 1 - 0.5 * 0.1, rtol=1e-6, err_msg=name)


def test_decay_follows_the_schedule():
    weights = {"w": jnp.ones((2, 2))}
    for name in OPTIMIZERS:
        train = TrainConfig(optimizer=name, weight_decay=0.1, learning_rate=PEAK, schedule="constant", warmup_steps=2)
        optimizer = make_optimizer(train, {"w": True})
        params, state = weights, optimizer.init(weights)
        for rate in (0, PEAK / 2, PEAK, PEAK):
            updates, state = optimizer.update(jax.tree.map(jnp.zeros_like, params), state, params)
            np.testing.assert_allclose(updates["w"], -0.1 * rate * params["w"], rtol=1e-6, err_msg=name)
            params = optax.apply_updates(params, updates)


@pytest.mark.parametrize("clip, expected", [(1.0, 1.0), (0.0, 50.0), (100.0, 50.0)])
def test_clip_norm_bounds_the_global_gradient(clip, expected):
    train = TrainConfig(clip_norm=clip, b1=0.0)  # without momentum Adam's first moment is the gradient it was given
    weights = {"a": jnp.zeros((1, 2)), "b": jnp.zeros(2)}
    optimizer = make_optimizer(train, {"a": True, "b": False})
    _, state = optimizer.update(
        {"a": jnp.array([[30.0, 0]]), "b": jnp.array([0, 40.0])}, optimizer.init(weights), weights
    )
    moment = optax.tree.get(state, "mu")
    np.testing.assert_allclose(optax.global_norm(moment), expected, rtol=1e-6)
    np.testing.assert_allclose(moment["b"][1] / moment["a"][0, 0], 4 / 3, rtol=1e-6)  # the direction stays


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_state_on_a_mesh(make_run, optimizer):
    fields = {"train.optimizer": optimizer, "train.weight_decay": 0.1, "train.schedule": "cosine"}
    fields |= {"mesh.data": 2, "mesh.fsdp": 2, "mesh.expert": 2, "model.d_model": 128, "model.d_ff": 128}
    setup = set_up(make_run(fields, devices=8))
    placed = jax.tree.map(lambda leaf: leaf.sharding, setup.shapes)
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, device=leaf.sharding), setup.shapes.params)
    state = jax.jit(setup.optimizer.init, out_shardings=placed.opt_state)(params)
    for leaf, abstract in zip(jax.tree.leaves(state), jax.tree.leaves(setup.shapes.opt_state), strict=True):
        assert (leaf.shape, leaf.dtype) == (abstract.shape, abstract.dtype)
        assert leaf.sharding.is_equivalent_to(abstract.sharding, leaf.ndim)
    shapes = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    _, after = jax.eval_shape(setup.optimizer.update, params, state, params)
    assert shapes(after) == shapes(state)

    head, kept = setup.shapes.params["head"], setup.shapes.opt_state
    assert not head.sharding.is_fully_replicated
    if optimizer == "adamw":
        assert optax.tree.get(kept, "mu")["head"].sharding == head.sharding
    else:  # a row and a column of sums for a matrix with two long sides
        row, column = (optax.tree.get(kept, name)["head"] for name in ("v_row", "v_col"))
        assert {row.shape, column.shape} == {(128,), (264,)}
        assert row.sharding.is_fully_replicated and column.sharding.is_fully_replicated
