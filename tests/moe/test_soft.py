"""Soft MoE against the paper's equations in NumPy (Puigcerver et al. 2023, sections 2 and 2.3), and by hand."""

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

G, T, D, F = 2, 6, 3, 4
CASES = {  # experts, K, capacity factor, C, padding
    "a slot a token": (3, 1, 1.0, 2, False),
    "padding": (3, 1, 1.0, 2, True),
    "C = T": (2, 2, 1.0, 6, True),
    "one slot each": (4, 1, 0.5, 1, False),
    "one expert": (1, 1, 0.5, 3, True),
}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def config(experts, top_k, factor, **fields) -> MoEConfig:
    return MoEConfig(
        num_experts=experts, top_k=top_k, capacity_factor=factor, router="soft", balance_loss=0.0, d_ff=F,
        activation="relu", group_size=T, **fields,
    )  # fmt: skip


def normalized(x, axis):
    return x / (np.sqrt((x**2).sum(axis=axis, keepdims=True)) + 1e-6)


def oracle(x, phi, scale, up, down, valid):
    """Padding tokens are as if they were not there."""
    y, slots = np.zeros_like(x), phi.shape[1] // len(up)
    for g in range(len(x)):
        tokens = x[g, valid[g]]
        if not len(tokens):
            continue
        logits = normalized(tokens, 1) @ (scale * normalized(phi, 0))
        inputs = softmax(logits, 0).T @ tokens
        outputs = [np.maximum(row @ up[s // slots], 0) @ down[s // slots] for s, row in enumerate(inputs)]
        y[g, valid[g]] = softmax(logits, 1) @ np.array(outputs)
    return y


def loads(x, phi, scale, up, valid):
    """What the tokens' weights on each expert's slots add up to."""
    load, slots = np.zeros(len(up)), phi.shape[1] // len(up)
    for logits in normalized(x[valid], 1) @ (scale * normalized(phi, 0)):
        for s, weight in enumerate(softmax(logits, 0)):
            load[s // slots] += weight
    return load


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_the_paper(case):
    experts, top_k, factor, slots, padded = case
    layer = make_layer(config(experts, top_k, factor), D)
    assert layer.router.phi.shape == (D, experts * slots)
    layer.router.scale[...] = jnp.asarray(1.7)
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, G, T, D))
    valid = np.ones((G, T), bool)
    if padded:
        valid[0, [0, 3]] = False
        valid[1] = False  # a group of nothing else
    arrays = {
        "x": x, "phi": layer.router.phi, "scale": layer.router.scale, "up": layer.experts.up,
        "down": layer.experts.down,
    }  # fmt: skip
    arrays = {name: np.array(array[...]) for name, array in arrays.items()}
    graphdef, state = nnx.split(layer)

    def loss(state, x):
        y, sums = nnx.merge(graphdef, state)(x, plain_context((G, T))._replace(valid=jnp.asarray(valid)), True)
        return jnp.sum(y * dy), (y, sums)

    run = jax.jit(jax.value_and_grad(on_one_device(loss), argnums=(0, 1), has_aux=True))
    (_, (y, sums)), (grads, dx) = run(state, x)
    np.testing.assert_allclose(y, oracle(**arrays, valid=valid), rtol=1e-9, atol=1e-12)
    expected = gradients(lambda **arrays: np.sum(oracle(**arrays, valid=valid) * dy), arrays)
    actual = {"x": dx, **{name: grads["router"][name] for name in ("phi", "scale")}}
    actual |= {name: grads["experts"][name] for name in ("up", "down")}
    for name, gradient in expected.items():
        np.testing.assert_allclose(actual[name][...], gradient, rtol=1e-6, atol=1e-8, err_msg=name)
    assert np.max(np.abs(expected["phi"])) > 1e-3
    assert abs(expected["scale"]) > 1e-4
    assert sums["tokens"] == valid.sum()
    assert sums["dropped_by_rank"].sum() == sums["passed_through"] == 0
    del arrays["down"]
    np.testing.assert_allclose(sums["choices"], loads(**arrays, valid=valid), rtol=1e-9)


def test_loads_are_combine_weights_by_hand():
    """Two experts of one slot each, along and against the first feature: a token along it gives e / (e + 1/e)."""
    layer = make_layer(config(2, 1, 1 / 3), D)
    layer.router.phi[...] = jnp.array([[3.0, -2.0], [0, 0], [0, 0]])
    x = np.zeros((1, T, D))
    x[0, :, 0] = [5, 5, 5, 5, -1, -1]
    valid = np.ones((1, T), bool)
    valid[0, 0] = False
    _, sums = apply(layer, x, valid)
    large = np.e / (np.e + 1 / np.e)
    np.testing.assert_allclose(sums["choices"], [3 * large + 2 * (1 - large), 3 * (1 - large) + 2 * large], rtol=1e-5)
    entropy = -large * np.log(large) - (1 - large) * np.log(1 - large)
    np.testing.assert_allclose(sums["entropy"], 5 * entropy, rtol=1e-5)
    histogram = np.zeros(20)
    histogram[int(large * 20)] = 5
    np.testing.assert_array_equal(sums["probability_counts"], histogram)
    np.testing.assert_array_equal(sums["wanted_by_rank"], [5])


def test_what_padding_holds_changes_nothing():
    layer = make_layer(config(3, 1, 1.0), D)
    x = np.random.default_rng(0).normal(size=(G, T, D))
    valid = np.ones((G, T), bool)
    valid[:, 2:4] = False
    other = x.copy()
    other[:, 2:4] = 7.0
    one, two = apply(layer, x, valid), apply(layer, other, valid)
    jax.tree.map(np.testing.assert_array_equal, one, two)
    assert np.all(one[0][:, 2:4] == 0)


def test_a_token_of_zeros_has_a_gradient():
    layer = make_layer(config(3, 1, 1.0), D)
    graphdef, state = nnx.split(layer)
    loss = lambda x: jnp.sum(nnx.merge(graphdef, state)(x, plain_context((G, T)), True)[0])
    x = np.random.default_rng(0).normal(size=(G, T, D))
    x[0, 0] = 0
    assert np.all(np.isfinite(jax.jit(jax.grad(on_one_device(loss)))(x)))


def test_nan_in_a_token_makes_its_whole_group_nan_and_no_other():
    x = np.random.default_rng(0).normal(size=(G, T, D))
    x[0, 1, 2] = np.nan
    y, _ = apply(make_layer(config(3, 1, 1.0), D), x)
    assert np.all(np.isnan(y[0])) and np.all(np.isfinite(y[1]))


def test_bfloat16_tokens_are_mixed_by_float32_weights():
    layer = make_layer(config(3, 1, 1.0), D)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(G, T, D)), jnp.bfloat16)
    graphdef, state = nnx.split(layer.router)
    context = plain_context((G, T))
    routing = on_one_device(lambda state, x: nnx.merge(graphdef, state)(x, context))(state, x)
    assert routing.mixing.into_slots.dtype == routing.mixing.into_tokens.dtype == jnp.float32
    assert apply(layer, x)[0].dtype == jnp.bfloat16


def test_shared_experts_stand_beside():
    plain, both = (make_layer(config(3, 1, 1.0, num_shared_experts=n, shared_d_ff=n * F), D) for n in (0, 2))
    nnx.update(both, nnx.state(plain))
    x = np.random.default_rng(0).normal(size=(G, T, D))
    shared = np.maximum(x @ both.shared.up[...], 0) @ both.shared.down[...]
    np.testing.assert_allclose(apply(both, x)[0], apply(plain, x)[0] + shared, rtol=1e-9, atol=1e-12)
