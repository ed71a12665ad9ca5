import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from one_device import apply, make_layer, on_one_device

from moe_jax.config import MoEConfig
from moe_jax.moe.context import plain_context
from moe_jax.moe.routers import ROUTERS
from moe_jax.moe.routing import Routing
from moe_jax.parallel.sharding import fan_in_init

D, E = 8, 6


def route(moe: MoEConfig, x, weight=None, keys=None) -> Routing:
    router = ROUTERS[moe.router](D, moe, fan_in_init(1.0), nnx.Rngs(params=0))
    if weight is not None:
        router.weight[...] = weight
    graphdef, state = nnx.split(router)
    context = plain_context(x.shape[:2])._replace(keys=keys)
    return jax.jit(on_one_device(lambda state, x: nnx.merge(graphdef, state)(x, context)))(state, x)


def x_of(groups=2, tokens=50, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(0).normal(size=(groups, tokens, D)), dtype)


def route_logits(moe: MoEConfig, logits) -> Routing:
    """One group of tokens with these logits [T, E]."""
    logits = jnp.asarray(logits)
    x = jnp.eye(logits.shape[0], D)[None]
    return route(moe, x, jnp.zeros((D, logits.shape[1])).at[: logits.shape[0]].set(logits))


def test_ties_go_to_the_lower_index():
    moe = MoEConfig(num_experts=4, router="top_k", top_k=3)
    routing = route_logits(moe, np.log([[0.25, 0.25, 0.25, 0.25], [0.1, 0.4, 0.1, 0.4]]))
    np.testing.assert_array_equal(routing.expert, [[[0, 1, 2], [1, 3, 0]]])
    np.testing.assert_allclose(routing.gate, [[[0.25, 0.25, 0.25], [0.4, 0.4, 0.1]]], rtol=1e-6)


def test_experts_are_told_apart_where_their_probabilities_underflow():
    routing = route_logits(MoEConfig(num_experts=3, router="top_k", top_k=2), [[0.0, -200.0, -150.0]])
    np.testing.assert_array_equal(routing.expert, [[[0, 2]]])
    np.testing.assert_array_equal(routing.gate, [[[1, 0]]])


def test_switch_keeps_the_raw_probability():
    routing = route(MoEConfig(num_experts=E, router="switch"), x_of())
    np.testing.assert_array_equal(routing.expert[..., 0], np.argmax(routing.probabilities, -1))
    np.testing.assert_allclose(routing.gate[..., 0], np.max(routing.probabilities, -1), rtol=1e-6)
    np.testing.assert_allclose(np.sum(routing.probabilities, -1), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("router", "top_k"),
    [("switch", 1), ("gshard", 2), ("top_k", 1), ("top_k", 3), ("sigmoid", 1), ("noisy_top_k", 2), ("sinkhorn", 1)],
)
def test_the_task_alone_moves_the_router(router, top_k):
    """The gradient of the layer's output, without any auxiliary loss, reaches the router's weights: top-1 too."""
    moe = MoEConfig(num_experts=E, router=router, top_k=top_k, d_ff=16, activation="relu", group_size=50)
    layer = make_layer(moe, D)
    graphdef, state = nnx.split(layer)

    def loss(state, x):
        y, _ = nnx.merge(graphdef, state)(x, plain_context(x.shape[:2]), True)
        return jnp.mean(jnp.square(y - 1))

    grads = jax.jit(jax.grad(on_one_device(loss)))(state, x_of())
    assert np.max(np.abs(grads["router"]["weight"][...])) > 1e-3


def test_top_k_divides_by_the_sum_of_the_chosen_only_when_told():
    raw = route(MoEConfig(num_experts=E, router="top_k", top_k=3), x_of())
    normalized = route(MoEConfig(num_experts=E, router="top_k", top_k=3, normalize_gates=True), x_of())
    total = np.sum(raw.gate, -1, keepdims=True)
    assert np.all(total < 1)
    np.testing.assert_allclose(normalized.gate, raw.gate / total, rtol=1e-6)
    assert np.all(np.diff(raw.gate, axis=-1) <= 0)


def test_gshard_threshold_keeps_second_experts_from_the_gate_on():
    x = x_of().at[0, :3].set(0)  # tokens that are as sure of both
    moe = MoEConfig(num_experts=E, router="gshard", top_k=2)
    always = route(moe, x)
    some, ties = (
        route(dataclasses.replace(moe, second_expert="threshold", second_threshold=size), x) for size in (0.4, 0.5)
    )
    assert np.all(always.wanted)
    np.testing.assert_array_equal(some.wanted[..., 0], True)
    np.testing.assert_array_equal(some.wanted[..., 1], np.asarray(always.gate[..., 1]) >= 0.4)
    assert 0 < np.mean(some.wanted[..., 1]) < 1
    np.testing.assert_array_equal(ties.wanted[..., 1].ravel().nonzero()[0], [0, 1, 2])


def test_gshard_random_keeps_second_experts_in_proportion_to_twice_their_gate():
    moe = MoEConfig(num_experts=2, router="gshard", top_k=2, second_expert="random")
    x = jnp.zeros((8, 1000, D)).at[..., 0].set(1)
    weight = jnp.zeros((D, 2)).at[0].set(jnp.log(jnp.array([0.85, 0.15])))
    keys = jax.random.split(jax.random.key(0), 8)
    routing = route(moe, x, weight, keys)
    np.testing.assert_allclose(routing.gate[0, 0], [0.85, 0.15], rtol=1e-5)
    kept = np.asarray(routing.wanted[..., 1])
    assert abs(kept.mean() - 0.30) < 0.03  # 8,000 draws: three standard deviations are 0.015
    assert np.all(routing.wanted[..., 0])
    assert not np.array_equal(kept[0], kept[1])  # every group has draws of its own
    assert np.all(route(moe, x, weight, keys=None).wanted)  # evaluation


def test_a_choice_let_go_by_the_router_is_neither_dispatched_nor_dropped():
    moe = MoEConfig(
        num_experts=E, router="gshard", top_k=2, second_expert="threshold", second_threshold=1.0, d_ff=4,
        activation="relu", group_size=50, capacity_factor=float(E),
    )  # fmt: skip
    layer = make_layer(moe, D)
    x = x_of()
    y, sums = apply(layer, x)
    routing = route(moe, x, layer.router.weight[...])
    first = np.asarray(routing.expert[..., 0])
    hidden = np.maximum(np.einsum("gtd,gtdf->gtf", x, np.asarray(layer.experts.up[...])[first]), 0)
    out = np.einsum("gtf,gtfd->gtd", hidden, np.asarray(layer.experts.down[...])[first])
    np.testing.assert_allclose(y, out * routing.gate[..., :1], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(sums["wanted_by_rank"], [100, 0])
    np.testing.assert_array_equal(sums["dropped_by_rank"], [0, 0])
    assert sums["choices"].sum() == 200  # the balance loss looks at all K choices


def test_jitter_scales_the_routers_input_within_its_bounds_and_only_with_keys():
    moe = MoEConfig(num_experts=E, router="switch", jitter=0.1)
    x, weight = jnp.ones((2, 50, D)), jnp.eye(D, E)  # each logit is a jittered feature
    keys = jax.random.split(jax.random.key(1), 2)
    noisy = np.asarray(route(moe, x, weight, keys).logits)
    assert noisy.min() >= 0.9 and noisy.max() <= 1.1 and noisy.std() > 0.04
    assert len(np.unique(noisy)) > 0.99 * noisy.size  # a draw for each feature of each token of each group
    np.testing.assert_array_equal(route(moe, x, weight).logits, 1)
    np.testing.assert_array_equal(noisy, route(moe, x, weight, keys).logits)
    rounded = route(
        MoEConfig(num_experts=E, router="switch", jitter=0.1, router_dtype="bfloat16"), x, weight, keys
    ).logits
    np.testing.assert_array_equal(rounded, jnp.asarray(noisy).astype(jnp.bfloat16).astype(jnp.float32))


def test_the_router_computes_in_float32_whatever_the_model_does():
    x = x_of(dtype=jnp.bfloat16)
    routing = route(MoEConfig(num_experts=E, router="switch"), x)
    assert routing.logits.dtype == routing.gate.dtype == jnp.float32
    exact = route(MoEConfig(num_experts=E, router="switch"), x.astype(jnp.float32))
    np.testing.assert_array_equal(routing.logits, exact.logits)


def test_gshard_keeps_second_experts_by_a_draw_of_their_own_beside_the_jitter():
    moe = MoEConfig(num_experts=E, router="gshard", top_k=2, second_expert="random", jitter=0.2)
    x, keys = x_of(groups=4), jax.random.split(jax.random.key(2), 4)
    weight = jnp.asarray(np.random.default_rng(1).normal(size=(D, E)), jnp.float32)
    routing = route(moe, x, weight, keys)
    draws = jnp.stack([jax.random.uniform(jax.random.fold_in(key, 1), x.shape[1:2]) for key in keys])
    np.testing.assert_array_equal(routing.wanted[..., 1], draws < 2 * routing.gate[..., 1])
    assert 0.1 < np.mean(routing.wanted[..., 1]) < 0.9
