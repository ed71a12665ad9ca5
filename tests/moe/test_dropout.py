"""Expert dropout: where the mask goes, what it holds, and what it leaves alone. Meshes: tests/parallel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from one_device import apply, make_layer, on_one_device

from moe_jax.config import MoEConfig
from moe_jax.moe.context import plain_context
from moe_jax.moe.dropout import hidden_mask, token_noise

G, T, D, F, RATE = 2, 12, 5, 8, 0.25


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def config(**fields) -> MoEConfig:
    defaults = dict(num_experts=1, d_ff=F, activation="relu", group_size=T, capacity_factor=1.0, expert_dropout=RATE)
    return MoEConfig(**{**defaults, **fields})


def keys():
    return jax.random.split(jax.random.key(5), G)


def mask_of(experts, slots, hidden, rate=RATE):
    """[G, experts, slots, hidden], where slot c of every expert holds token c."""

    def draw(keys):
        noise = jnp.broadcast_to(token_noise(keys, slots)[:, None], (G, experts, slots, 2))
        expert = jnp.broadcast_to(jnp.arange(experts)[:, None], (G, experts, slots))
        return hidden_mask(noise, expert, rate, hidden)

    return np.asarray(jax.jit(on_one_device(draw))(keys()))


def test_units_are_dropped_at_the_rate_and_the_rest_scaled():
    mask = mask_of(experts=4, slots=50, hidden=40)
    assert mask.shape == (G, 4, 50, 40)
    np.testing.assert_allclose(np.unique(mask), [0, 1 / (1 - RATE)])
    for axis in range(4):  # at its rate for every group, expert, slot and unit, within five standard deviations
        deviation = (RATE * (1 - RATE) * mask.shape[axis] / mask.size) ** 0.5
        others = tuple(a for a in range(4) if a != axis)
        assert np.all(np.abs(np.mean(mask == 0, axis=others) - RATE) < 5 * deviation)
        agree = np.mean(np.take(mask, 0, axis) == np.take(mask, 1, axis))
        assert abs(agree - (RATE**2 + (1 - RATE) ** 2)) < 6 * deviation, "two of them share their draws"


@pytest.mark.parametrize("activation", ["relu", "swiglu"])
def test_the_mask_multiplies_the_hidden_layer(activation):
    """One expert that takes every token with gate 1, so that slot c holds token c; gradients by hand for ReLU."""
    layer = make_layer(config(activation=activation), D)
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, G, T, D))
    mask = mask_of(1, T, F)[:, 0]
    graphdef, state = nnx.split(layer)

    def loss(state, x):
        y, _ = nnx.merge(graphdef, state)(x, plain_context((G, T))._replace(keys=keys()), True)
        return jnp.sum(y * dy), y

    (_, y), (grads, dx) = jax.jit(jax.value_and_grad(on_one_device(loss), argnums=(0, 1), has_aux=True))(state, x)
    up, down = (np.asarray(w[...])[0] for w in (layer.experts.up, layer.experts.down))
    before = x @ up
    if activation == "swiglu":
        gate = x @ np.asarray(layer.experts.gate[...])[0]
        np.testing.assert_allclose(y, (gate / (1 + np.exp(-gate)) * before * mask) @ down, rtol=1e-9, atol=1e-12)
        return
    hidden = np.maximum(before, 0) * mask
    d_before = (dy @ down.T) * mask * (before > 0)
    np.testing.assert_allclose(y, hidden @ down, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(grads["experts"]["down"][...][0], np.einsum("gtf,gtd->fd", hidden, dy), rtol=1e-9)
    np.testing.assert_allclose(grads["experts"]["up"][...][0], np.einsum("gtd,gtf->df", x, d_before), rtol=1e-9)
    np.testing.assert_allclose(dx, d_before @ up.T, rtol=1e-9, atol=1e-12)


def test_evaluation_is_without():
    x = np.random.default_rng(0).normal(size=(G, T, D))
    for train in (True, False):
        with_rate, without = (
            apply(make_layer(config(expert_dropout=rate), D), x, train=train)[0] for rate in (RATE, 0.0)
        )
        np.testing.assert_array_equal(with_rate, without)


def test_no_dropout_is_no_program():
    x = np.random.default_rng(0).normal(size=(G, T, D))

    def program(rate, noise):
        graphdef, state = nnx.split(make_layer(config(expert_dropout=rate), D))
        context = plain_context((G, T))
        forward = lambda state, x, keys: nnx.merge(graphdef, state)(
            x, context._replace(keys=keys if noise else None), True
        )
        return jax.jit(on_one_device(forward)).lower(state, x, keys()).as_text()

    assert program(0.0, noise=True) == program(0.0, noise=False)
    assert program(RATE, noise=True) != program(0.0, noise=True)


@pytest.mark.parametrize("chunks", [2, 3])
def test_an_exchange_in_pieces_has_the_same_masks(chunks):
    x = np.random.default_rng(0).normal(size=(G, T, D))
    fields = dict(num_experts=3, router="top_k", top_k=2, capacity_factor=0.9)
    whole, pieces = (apply(make_layer(config(**fields, exchange_chunks=n), D), x, keys=keys())[0] for n in (1, chunks))
    np.testing.assert_allclose(whole, pieces, rtol=1e-12, atol=1e-14)


def test_shared_experts_keep_all_their_units():
    layer = make_layer(config(num_shared_experts=2, shared_d_ff=2 * F), D)
    layer.experts.down[...] = jnp.zeros_like(layer.experts.down[...])
    x = np.random.default_rng(0).normal(size=(G, T, D))
    shared = np.maximum(x @ layer.shared.up[...], 0) @ layer.shared.down[...]
    np.testing.assert_allclose(apply(layer, x, keys=keys())[0], shared, rtol=1e-9, atol=1e-12)
