"""Every learned router against loops in NumPy: choices, gates, probabilities, and gradients by finite differences."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import router_oracle
from finite_differences import slopes
from flax import nnx
from one_device import on_one_device
from router_tables import LEARNED, LOOPS, NO_EDGES, OTHER_LOOPS, OTHER_OPTIONS, UNLEARNED, E

from moe_jax.config import MoEConfig
from moe_jax.moe.context import Context
from moe_jax.moe.routers import ROUTERS
from moe_jax.moe.routers.sinkhorn import balancing_offsets
from moe_jax.parallel.sharding import fan_in_init

G, T, D = 2, 6, 4
STEP = 30
OPTIONS = sorted(frozenset().union(*(router.options for router in ROUTERS.values())))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", [*ROUTERS, *OPTIONS])
def test_every_router_and_option_has_a_row(name):
    """In tests/helpers/router_tables.py, or by name the file of its own tests."""
    if name in ROUTERS:
        assert name in {moe.router for moe, _ in LOOPS.values()} | set(OTHER_LOOPS), f"LOOPS has no row of {name}"
        assert name in {row[0] for row in (*LEARNED, *UNLEARNED)} | set(NO_EDGES), f"LEARNED has no row of {name}"
    else:
        default = getattr(MoEConfig(), name)
        used = any(getattr(moe, name) != default for moe, _ in LOOPS.values())
        assert used or name in OTHER_OPTIONS, f"LOOPS has no row with an own value of {name}"


@pytest.mark.parametrize("name", ROUTERS)
def test_options_are_fields_of_the_config(name):
    unknown = sorted(ROUTERS[name].options - {field.name for field in dataclasses.fields(MoEConfig)})
    assert not unknown, f"{name}.options names {unknown}, which config/schema.py does not have"


@pytest.mark.parametrize("file", sorted({*OTHER_LOOPS.values(), *NO_EDGES.values(), *OTHER_OPTIONS.values()}))
def test_tests_that_stand_elsewhere_are_there(file):
    assert (Path(__file__).parent / file).exists()


def make_router(moe, seed=0):
    """Its structure, and weights none of which is zero."""
    graphdef, weights = nnx.split(ROUTERS[moe.router](D, moe, fan_in_init(1.0), nnx.Rngs(params=0), jnp.float64))
    rng = np.random.default_rng(seed)
    return graphdef, {name: rng.normal(size=w.shape) for name, w in nnx.to_pure_dict(weights).items()}


def inputs():
    rng = np.random.default_rng(1)
    valid = rng.random((G, T)) > 0.25
    return rng.normal(size=(G, T, D)), valid


def noise_of(moe, train):
    """Keys, and what a router draws from them."""
    if not train:
        return None, np.zeros((G, T, E + moe.null_experts))
    keys = jax.random.split(jax.random.key(5), G)
    draw = lambda key: jax.random.normal(jax.random.fold_in(key, 1), (T, E + moe.null_experts), jnp.float64)
    return keys, np.asarray(jax.vmap(draw)(keys))


@pytest.mark.parametrize(("moe", "train"), LOOPS.values(), ids=LOOPS)
def test_equals_loops_over_tokens_and_experts(moe, train):
    graphdef, weights = make_router(moe)
    x, valid = inputs()
    keys, noise = noise_of(moe, train)
    expected = router_oracle.route(moe, weights, x, valid, noise, STEP, train)
    rng = np.random.default_rng(2)
    factors = [rng.normal(size=part.shape) for part in expected[1:-1]]  # of all that has a gradient
    context = Context(jnp.zeros((G, T), jnp.int32), jnp.asarray(valid), keys, jnp.int32(STEP), train)

    def weighed(weights, x):
        routing = nnx.merge(graphdef, weights)(x, context)
        passed = None if routing.identity_gate is None else routing.identity_gate[..., None]
        parts = routing.gate, routing.probabilities, routing.smooth_load, routing.logits, routing.input_gate, passed
        return sum(jnp.sum(a * f) for a, f in zip(parts, factors, strict=True) if a is not None), routing

    gradients = jax.jit(jax.grad(on_one_device(weighed), argnums=(0, 1), has_aux=True))
    (d_weights, dx), routing = gradients(weights, x)
    close = lambda actual, wanted: np.testing.assert_allclose(actual, wanted, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(routing.expert, expected.expert)
    np.testing.assert_array_equal(routing.wanted, valid[..., None] & (expected.expert < E) & (expected.kept > 0))
    close(routing.gate, expected.gate)
    close(routing.probabilities, expected.probabilities)
    close(routing.logits, expected.logits)
    close(1 if routing.input_gate is None else routing.input_gate, expected.input_gate)
    close(0 if routing.identity_gate is None else routing.identity_gate[..., None], expected.identity_gate)
    assert (routing.input_gate is not None) == np.any(expected.input_gate != 1)
    assert (routing.identity_gate is not None) == np.any(expected.identity_gate != 0)
    assert (routing.smooth_load is not None) == (moe.router == "noisy_top_k")
    if routing.smooth_load is not None:
        close(routing.smooth_load, expected.smooth_load)
        if not train:  # an expert's own noise keeps it among the K more often than not
            np.testing.assert_array_equal(np.sum(routing.smooth_load > 0.5, axis=-1), moe.top_k)

    def by_loops(name, array):
        changed = {**weights, "x": x, name: array}
        parts = router_oracle.route(moe, changed, changed["x"], valid, noise, STEP, train)[1:-1]
        return sum(np.sum(a * f) for a, f in zip(parts, factors, strict=True))

    for name, gradient in {**d_weights, "x": dx}.items():
        array = x if name == "x" else weights[name]
        by_differences = slopes(lambda moved, name=name: by_loops(name, moved), array)
        np.testing.assert_allclose(gradient, by_differences, rtol=1e-6, atol=1e-7, err_msg=name)
        assert np.any(gradient != 0) == (name != "balance_bias")


def test_sinkhorn_scales_rows_and_columns_as_often_as_told():
    """The scales of the columns are what the assignment's rows have beside the logits, up to a constant."""
    _, valid = inputs()
    logits = 2 * np.random.default_rng(3).normal(size=(G, T, E))
    relative = lambda x: x - x[..., :1]
    for iterations in (1, 2, 3, 8):
        assignment = [router_oracle.sinkhorn(*group, iterations) for group in zip(logits, valid, strict=True)]
        offsets = balancing_offsets(jnp.asarray(logits), jnp.asarray(valid), iterations)
        expected = relative(np.log(assignment) - logits)
        np.testing.assert_allclose(relative(offsets) * np.ones((G, T, E)), expected, rtol=1e-9, atol=1e-12)


def test_sinkhorn_balances_bfloat16_logits_in_float32():
    rough = jnp.asarray(np.random.default_rng(3).normal(size=(G, T, E)), jnp.bfloat16)
    one, other = (balancing_offsets(logits, jnp.ones((G, T), bool), 3) for logits in (rough, rough.astype(jnp.float32)))
    assert one.dtype == jnp.float32
    np.testing.assert_array_equal(one, other)
