"""Expert choice against loops over experts in NumPy (Zhou et al. 2022, section 3.2), and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_differences import gradients
from flax import nnx
from one_device import apply, make_layer, on_one_device
from softmax import softmax

from moe_jax.config import MoEConfig
from moe_jax.moe.context import plain_context
from moe_jax.moe.measures import routing_stats
from moe_jax.moe.routers.expert_choice import ExpertChoice

G, T, D, F = 2, 6, 3, 4
CASES = {  # experts, K, capacity factor, C, padding
    "two of six": (3, 1, 1.0, 2, False),
    "padding": (3, 2, 1.0, 4, True),
    "C = T": (3, 3, 1.0, 6, False),
    "C = T with padding": (2, 2, 1.0, 6, True),
    "one slot": (4, 1, 0.5, 1, True),
    "one expert": (1, 1, 0.5, 3, True),
}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def config(experts, top_k, factor, **fields) -> MoEConfig:
    return MoEConfig(
        num_experts=experts, top_k=top_k, capacity_factor=factor, router="expert_choice", balance_loss=0.0, d_ff=F,
        activation="relu", group_size=T, **fields,
    )  # fmt: skip


def chosen(scores, valid, slots):
    """[E, at most C] tokens of one group: each expert's best, the earlier of equals first."""
    tokens = [t for t in range(len(scores)) if valid[t]]
    return [sorted(tokens, key=lambda t: (-scores[t, e], t))[:slots] for e in range(scores.shape[1])]


def oracle(x, router, up, down, valid, slots):
    y = np.zeros_like(x)
    for g in range(len(x)):
        scores = np.array([softmax(row @ router) for row in x[g]])
        for e, tokens in enumerate(chosen(scores, valid[g], slots)):
            for t in tokens:
                y[g, t] += scores[t, e] * np.maximum(x[g, t] @ up[e], 0) @ down[e]
    return y


@pytest.mark.parametrize("dispatcher", ExpertChoice.dispatchers)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_the_paper(case, dispatcher):
    experts, top_k, factor, slots, padded = case
    layer = make_layer(config(experts, top_k, factor, dispatcher=dispatcher), D)
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, G, T, D))
    valid = np.ones((G, T), bool)
    if padded:
        valid[0, [0, 3]] = False
        valid[1] = False  # a group of nothing else
    arrays = {"x": x, "router": layer.router.weight, "up": layer.experts.up, "down": layer.experts.down}
    arrays = {name: np.array(array[...]) for name, array in arrays.items()}
    graphdef, state = nnx.split(layer)

    def loss(state, x):
        y, sums = nnx.merge(graphdef, state)(x, plain_context((G, T))._replace(valid=jnp.asarray(valid)), True)
        return jnp.sum(y * dy), (y, sums)

    run = jax.jit(jax.value_and_grad(on_one_device(loss), argnums=(0, 1), has_aux=True))
    (_, (y, sums)), (grads, dx) = run(state, x)
    np.testing.assert_allclose(y, oracle(**arrays, valid=valid, slots=slots), rtol=1e-9, atol=1e-12)
    expected = gradients(lambda **arrays: np.sum(oracle(**arrays, valid=valid, slots=slots) * dy), arrays)
    actual = {"x": dx, "router": grads["router"]["weight"], **{n: grads["experts"][n] for n in ("up", "down")}}
    for name, gradient in expected.items():
        np.testing.assert_allclose(actual[name][...], gradient, rtol=1e-6, atol=1e-8, err_msg=name)
    assert experts == 1 or np.max(np.abs(expected["router"])) > 1e-3
    full = sum(min(slots, group.sum()) for group in valid)
    np.testing.assert_array_equal(sums["choices"], np.full(experts, full))
    assert sums["dropped_by_rank"].sum() == 0
    assert sums["probability_counts"].sum() == experts * full


def test_statistics_by_hand():
    """Two experts, C = 2, scores of the first 0.9, 0.8, 0.7 and three times 0.2: both take two, two get none."""
    layer = make_layer(config(2, 1, 2 / 3), D)
    first = np.array([0.9, 0.8, 0.7, 0.2, 0.2, 0.2])
    layer.router.weight[...] = np.array([[1.0, 0.0], [0, 0], [0, 0]])
    x = np.zeros((1, T, D))
    x[0, :, 0] = np.log(first / (1 - first))
    _, sums = apply(layer, x)
    np.testing.assert_array_equal(sums["choices"], [2, 2])
    np.testing.assert_array_equal(sums["wanted_by_rank"], [2, 2])  # rank e is expert e
    assert sums["passed_through"] == 2  # tokens 2 and 5: of three equals the earlier two are taken
    np.testing.assert_array_equal(sums["wanted_by_position"], [1, 1, 0, 0, 1, 1, 0, 0])  # bins of position * 8 // 6
    histogram = np.zeros(20)
    histogram[[18, 16]] = 1, 3  # 0.9 of the first expert; 0.8 three times
    np.testing.assert_array_equal(sums["probability_counts"], histogram)
    stats = routing_stats(jax.tree.map(lambda s: s[None], sums))
    np.testing.assert_array_equal(stats["load"], [[1, 1]])
    assert stats["max_violation"] == stats["dropped_fraction"] == 0
    np.testing.assert_allclose(stats["passed_through"], 1 / 3)


def test_equal_scores_go_to_earlier_tokens():
    layer = make_layer(config(2, 1, 2 / 3), D)
    y, _ = apply(layer, np.ones((1, T, D)))
    assert np.all(np.any(y[0, :2] != 0, axis=-1))
    assert np.all(y[0, 2:] == 0)


def test_scores_that_underflow_are_still_told_apart():
    """The third token's probability of the second expert is zero in float64, and yet larger than the others'."""
    layer = make_layer(config(2, 1, 1 / 3), D)
    layer.router.weight[...] = np.array([[1.0, 0.0], [0, 0], [0, 0]])
    x = np.zeros((1, T, D))
    x[0, :, 0] = [4000, 3000, 1000, 2000, 5000, 6000]
    _, sums = apply(layer, x)
    assert sums["wanted_by_position"][2 * 8 // T] > 0


def test_training_and_evaluation_have_their_own_capacity():
    layer = make_layer(config(2, 1, 2 / 3, eval_capacity_factor=1.0), D)
    x = np.random.default_rng(0).normal(size=(G, T, D))
    np.testing.assert_array_equal(apply(layer, x, train=True)[1]["choices"], [4, 4])
    np.testing.assert_array_equal(apply(layer, x, train=False)[1]["choices"], [6, 6])


def test_gates_are_scaled():
    x = np.random.default_rng(0).normal(size=(G, T, D))
    plain, scaled = (apply(make_layer(config(2, 1, 1.0, routed_scaling=s), D), x)[0] for s in (1.0, 2.5))
    np.testing.assert_allclose(scaled, 2.5 * plain, rtol=1e-9)
