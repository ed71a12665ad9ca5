"""Routings of 2025 and 2026, where they do what the common tables do not hold: hashed layers, biases, penalties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from one_device import apply, make_layer, on_one_device

from moe_jax.config import MoEConfig
from moe_jax.moe.bias_updates import BIAS_UPDATES, updated_bias
from moe_jax.moe.bias_updates.quantile import BINS, margins
from moe_jax.moe.context import Context
from moe_jax.moe.losses import balance_loss, entropy_loss, penalty_loss
from moe_jax.moe.routers import ROUTERS
from moe_jax.moe.routers.sqrt_softplus import log_scores
from moe_jax.moe.routing import Routing
from moe_jax.moe.sums import Observed
from moe_jax.parallel.sharding import fan_in_init

G, T, D, E = 2, 16, 4, 8


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def route(name, ids, x, **fields):
    moe = MoEConfig(num_experts=E, router=name, **fields)
    graphdef, weights = nnx.split(ROUTERS[name](D, moe, fan_in_init(1.0), nnx.Rngs(params=0), jnp.float64))
    context = Context(ids, jnp.ones(ids.shape, bool), None, jnp.int32(0), True)
    return on_one_device(lambda w, x: nnx.merge(graphdef, w)(x, context))(weights, x), weights


def test_hashed_layers_take_the_experts_of_hash_and_the_gates_of_the_scores():
    rng = np.random.default_rng(0)
    ids, x = jnp.asarray(rng.integers(0, 50, (G, T)), jnp.int32), rng.normal(size=(G, T, D))
    hashed, weights = route("hashed_sqrt_softplus", ids, x, top_k=3, normalize_gates=True, routed_scaling=1.5)
    plain, _ = route("hash", ids, x, top_k=3)
    np.testing.assert_array_equal(hashed.expert, plain.expert)
    scores = np.sqrt(np.log1p(np.exp(x @ np.asarray(weights["weight"][...]))))
    chosen = np.take_along_axis(scores, np.asarray(plain.expert), axis=-1)
    np.testing.assert_allclose(hashed.gate, 1.5 * chosen / chosen.sum(-1, keepdims=True), rtol=1e-12)


def test_scores_far_below_zero_keep_their_order_and_a_gradient():
    """softplus underflows near -745; its logarithm is the logit itself."""
    logits = jnp.array([[[-2000.0, -800.0, -1000.0]]])
    scores = log_scores
    np.testing.assert_allclose(scores(logits), logits / 2)
    np.testing.assert_allclose(jax.grad(lambda z: jnp.sum(scores(z)))(logits), np.full((1, 1, 3), 0.5))
    ordinary = jnp.linspace(-30.0, 30, 25).reshape(1, 1, -1)
    np.testing.assert_allclose(scores(ordinary), np.log(np.log1p(np.exp(np.asarray(ordinary)))) / 2, rtol=1e-6)


def test_an_input_gate_reaches_the_router_also_with_one_choice():
    layer = make_layer(MoEConfig(num_experts=E, router="llama4", d_ff=6, activation="swiglu", group_size=T), D)
    graphdef, weights = nnx.split(layer)
    context = Context(jnp.zeros((G, T), jnp.int32), jnp.ones((G, T), bool), None, jnp.int32(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(G, T, D)))
    loss = on_one_device(lambda w: jnp.sum(nnx.merge(graphdef, w)(x, context, True)[0] ** 2))
    assert np.abs(jax.grad(loss)(weights)["router"]["weight"][...]).max() > 1e-3


def test_top_p_counts_the_experts_that_a_token_takes():
    """Logits far apart: the first expert alone reaches p; equal ones: as many as fit."""
    moe = MoEConfig(num_experts=4, top_k=3, router="top_p", top_p=0.5, d_ff=4, activation="relu", group_size=T)
    for scale, taken in ((100.0, 1), (0.0, 2)):
        layer = make_layer(moe, D)
        layer.router.weight[...] = scale * jnp.eye(D)
        x = np.eye(D)[np.arange(T) % D][None]
        _, sums = apply(layer, x)
        assert sums["wanted_by_rank"].sum() == sums["choices"].sum() == taken * T


def test_top_p_of_all_experts_is_balanced_by_those_that_tokens_take():
    moe = MoEConfig(num_experts=E, top_k=E, router="top_p", top_p=0.4, d_ff=4, activation="relu", group_size=T)
    graphdef, weights = nnx.split(make_layer(moe, D))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(G, T, D)))
    context = Context(jnp.zeros((G, T), jnp.int32), jnp.ones((G, T), bool), None, jnp.int32(0))
    loss = on_one_device(lambda w: balance_loss(nnx.merge(graphdef, w)(x, context, True)[1]))
    assert loss(weights) > 1.02
    assert np.abs(jax.grad(loss)(weights)["router"]["weight"][...]).max() > 1e-3


def test_the_entropy_is_that_of_the_distribution_and_pushes_towards_fewer_experts():
    moe = MoEConfig(num_experts=E, top_k=2, router="top_p", entropy_loss=1.0, d_ff=4, activation="relu", group_size=T)
    layer = make_layer(moe, D)
    x = np.random.default_rng(0).normal(size=(G, T, D))
    valid = np.arange(T) < np.array([[T], [5]])
    _, sums = apply(layer, x, valid)
    p = np.exp(x @ np.asarray(layer.router.weight[...]))
    p /= p.sum(-1, keepdims=True)
    np.testing.assert_allclose(entropy_loss(sums), np.mean(-(p * np.log(p)).sum(-1)[valid]), rtol=1e-12)


def test_longcat_bias_by_hand():
    """Three choices a token, of which two are to be experts'; ten tokens, 4 experts and 2 null ones."""
    moe = MoEConfig(num_experts=4, null_experts=2, top_k=3, bias_rate=0.3, bias_update="longcat", target_experts=2.0)
    choices = jnp.array([5.0, 4, 3, 8, 6, 4])
    share = 2 / (3 * 4)
    expected = [0.3 * (share - n / 30) for n in (5, 4, 3, 8)] + [0, 0]
    moved = updated_bias(jnp.zeros(6), choices, jnp.int32(0), moe, BIAS_UPDATES["longcat"])
    np.testing.assert_allclose(moved, expected, rtol=1e-12)
    idle = updated_bias(jnp.ones(6), 0 * choices, jnp.int32(0), moe, BIAS_UPDATES["longcat"])
    np.testing.assert_array_equal(idle, np.ones(6))


def quantile_bias(scores, bias, k):
    """The exact one: of each expert's sorted margins the K / E quantile, less the mean over experts."""
    margin = np.sort(np.sort(scores + bias, axis=-1)[:, -k - 1, None] - scores, axis=0)
    quantile = margin[round(k / scores.shape[-1] * len(scores)) - 1]
    return quantile - quantile.mean()


def observed(scores, bias, k, valid):
    expert = np.argsort(-(scores + bias), axis=-1)[..., :k]
    fill = jnp.zeros(())
    routing = Routing(
        jnp.asarray(expert), fill, fill, jnp.asarray(valid), jnp.asarray(scores), fill, scores=jnp.asarray(scores),
        bias=jnp.asarray(bias),
    )  # fmt: skip
    return Observed(routing, fill, 1)


def test_quantile_bias_equals_the_exact_quantile_and_balances_the_batch_it_saw():
    rng = np.random.default_rng(0)
    tokens, k = 4096, 2
    scores = 1 / (1 + np.exp(-rng.normal(size=(1, tokens, E)) - 2 * rng.normal(size=E)))  # some experts are favoured
    bias, valid = np.zeros(E), np.ones((1, tokens), bool)
    moe = MoEConfig(num_experts=E, top_k=k, router="sigmoid", bias_rate=1.0, bias_update="quantile")
    spread = []
    for _ in range(12):
        counts = margins(observed(scores, bias, k, valid))
        assert counts.shape == (E, BINS)
        np.testing.assert_array_equal(counts.sum(-1), tokens)
        moved = updated_bias(jnp.asarray(bias), counts, jnp.int32(0), moe, BIAS_UPDATES["quantile"])
        width = (np.ptp(bias) + 2) / BINS
        np.testing.assert_allclose(moved, quantile_bias(scores[0], bias, k), atol=width)
        bias = np.asarray(moved)
        chosen = np.argsort(-(scores[0] + bias), axis=-1)[:, :k]
        loads = np.bincount(chosen.ravel(), minlength=E) / (tokens * k / E)
        spread.append(loads.max() - 1)
    assert spread[-1] < 0.05 < 0.3 < np.bincount(np.argsort(-scores[0])[:, :k].ravel()).max() / (tokens * k / E) - 1


def test_quantile_is_interpolated_within_its_bin():
    """Two experts, one choice: half of the tokens. Of 3 and 5 tokens in two bins, a fifth of the second one is needed;
    of 8 tokens in one bin, half of it. Bins begin at -1 and are 0.002 wide.
    """
    counts = np.zeros((2, BINS))
    counts[0, 500:502], counts[1, 300] = (3, 5), 8
    first, second = -1 + 0.002 * 501.2, -1 + 0.002 * 300.5
    moe = MoEConfig(num_experts=2, router="sigmoid", bias_rate=1.0, bias_update="quantile")
    moved = updated_bias(jnp.zeros(2), jnp.asarray(counts), jnp.int32(0), moe, BIAS_UPDATES["quantile"])
    np.testing.assert_allclose(moved, [(first - second) / 2, (second - first) / 2], rtol=1e-12)


def test_padding_has_no_margin_and_a_step_of_padding_moves_nothing():
    scores, bias = np.random.default_rng(0).random((2, 5, E)), np.linspace(-1, 1, E)
    valid = np.array([[True] * 3 + [False] * 2, [False] * 5])
    counts = margins(observed(scores, bias, 2, valid))
    np.testing.assert_array_equal(counts.sum(-1), 3)
    moe = MoEConfig(num_experts=E, top_k=2, router="sigmoid", bias_rate=1.0, bias_update="quantile")
    moved = updated_bias(jnp.asarray(bias), 0 * counts, jnp.int32(0), moe, BIAS_UPDATES["quantile"])
    np.testing.assert_array_equal(moved, bias)


def test_simbal_is_zero_for_orthonormal_columns_and_sums_what_is_beside_the_identity():
    moe = MoEConfig(
        num_experts=3, top_k=2, router="top_k", d_ff=4, activation="relu", group_size=T, penalty="simbal",
        penalty_loss=0.1,
    )  # fmt: skip
    for weight, expected in ((np.eye(D)[:, :3], 0), (2 * np.eye(D)[:, :3], 9), (np.ones((D, 3)), 3 * 3 + 6 * 4)):
        layer = make_layer(moe, D)
        layer.router.weight[...] = jnp.asarray(weight)
        _, sums = apply(layer, np.random.default_rng(0).normal(size=(G, T, D)))
        np.testing.assert_allclose(penalty_loss(sums), expected, atol=1e-12)
