"""The whole layer against loops in NumPy: outputs, every gradient, every count; every dispatcher in one table."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from one_device import apply, make_layer, on_one_device
from oracle import moe_layer

from moe_jax.config import MoEConfig
from moe_jax.moe.context import plain_context
from moe_jax.moe.feed_forward import FeedForward
from moe_jax.moe.losses import balance_loss, z_loss
from moe_jax.moe.measures import routing_stats
from moe_jax.moe.plan import DROP_ORDERS
from moe_jax.moe.router import CARRY_SLOTS

G, T, D, F, E = 3, 20, 6, 10, 5
ROUTINGS = (("switch", 1, False), ("top_k", 1, False), ("gshard", 2, False), ("top_k", 2, False), ("top_k", 4, True))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def config(**fields) -> MoEConfig:
    defaults = dict(num_experts=E, d_ff=F, activation="relu", group_size=T, capacity_factor=0.7)
    return MoEConfig(**{**defaults, **fields})


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    valid = rng.random((G, T)) > 0.2
    valid[1] = True  # one group without padding
    return rng.normal(size=(G, T, D)), valid, rng.normal(size=(G, T, D))


@pytest.mark.parametrize("dispatcher", CARRY_SLOTS)
@pytest.mark.parametrize("drop_order", DROP_ORDERS)
@pytest.mark.parametrize(("router", "top_k", "normalize"), ROUTINGS)
def test_equals_loops_over_tokens_and_experts(router, top_k, normalize, drop_order, dispatcher):
    moe = config(router=router, top_k=top_k, normalize_gates=normalize, drop_order=drop_order, dispatcher=dispatcher)
    layer = make_layer(moe, D)
    x, valid, dy = inputs()
    weights = {
        "router": layer.router.weight[...],
        "up": layer.experts.up[...],
        "down": layer.experts.down[...],
    }
    expected = moe_layer(x, valid, {name: np.asarray(w) for name, w in weights.items()}, moe, dy)
    assert 0 < expected.dropped < expected.assigned.sum()

    graphdef, state = nnx.split(layer)

    def loss(state, x):
        y, sums = nnx.merge(graphdef, state)(x, plain_context(x.shape[:2])._replace(valid=jnp.asarray(valid)), True)
        return jnp.sum(y * dy) + balance_loss(sums) + z_loss(sums), (y, sums)

    (_, (y, sums)), (grads, dx) = jax.jit(jax.value_and_grad(on_one_device(loss), argnums=(0, 1), has_aux=True))(
        state, x
    )
    close = lambda actual, wanted: np.testing.assert_allclose(actual, wanted, rtol=1e-9, atol=1e-11)
    close(y, expected.y)
    close(balance_loss(sums), expected.balance_loss)
    close(z_loss(sums), expected.z_loss)
    close(sums["choices"], expected.assigned)
    close(sums["dropped_by_rank"].sum(), expected.dropped)
    close(dx, expected.gradients["x"])
    close(grads["router"]["weight"][...], expected.gradients["router"])
    close(grads["experts"]["up"][...], expected.gradients["up"])
    close(grads["experts"]["down"][...], expected.gradients["down"])


@pytest.mark.parametrize("dispatcher", CARRY_SLOTS)
def test_a_token_without_any_slot_adds_nothing_to_the_residual_stream(dispatcher):
    moe = config(top_k=1, capacity_factor=0.25, dispatcher=dispatcher)  # C = 1
    layer = make_layer(moe, D)
    x = np.tile(np.random.default_rng(1).normal(size=(1, 1, D)), (1, T, 1))  # equal tokens, so one expert for all
    y, sums = apply(layer, x)
    assert np.any(y[0, 0] != 0)
    assert np.all(y[0, 1:] == 0)
    assert sums["passed_through"] == T - 1
    np.testing.assert_allclose(routing_stats(jax.tree.map(lambda s: s[None], sums))["passed_through"], (T - 1) / T)


def test_padding_takes_no_slot_and_counts_in_no_statistic():
    """The same valid tokens with and without padding before them give the same outputs and sums."""
    moe = config(top_k=2, router="top_k", capacity_factor=0.8, group_size=T)
    layer = make_layer(moe, D)
    x, _, _ = inputs()
    valid = np.ones((G, T), bool)
    valid[:, : T // 2] = False
    y, sums = apply(layer, x, valid)
    other = x.copy()
    other[:, : T // 2] = 7.0  # whatever padding holds
    y_other, sums_other = apply(layer, other, valid)
    assert np.all(y[:, : T // 2] == 0)
    np.testing.assert_array_equal(y[:, T // 2 :], y_other[:, T // 2 :])
    jax.tree.map(np.testing.assert_array_equal, sums, sums_other)
    assert sums["tokens"] == G * T // 2
    assert sums["choices"].sum() == 2 * G * T // 2


def test_a_group_may_span_sequences_and_groups_do_not_see_each_other():
    x, _, _ = inputs()
    moe = config(top_k=2, router="top_k", group_size=2 * T, balance_scope="sequence")
    x = np.concatenate([x, x[:1] + 1])  # 4 sequences, 2 groups
    layer = make_layer(moe, D)
    y, sums = apply(layer, x)
    p = np.array(jax.nn.softmax(x @ layer.router.weight[...]))
    f = np.mean(p >= np.sort(p)[..., -2:-1], axis=1) / 2
    np.testing.assert_allclose(sums["sequence_balance"], E * np.sum(f * p.mean(axis=1)), rtol=1e-9)
    assert sums["sequences"] == 4
    changed = x.copy()
    changed[3] *= -1
    y_changed, _ = apply(layer, changed)
    np.testing.assert_array_equal(y[:2], y_changed[:2])
    assert np.any(y[2:] != y_changed[2:])


def test_train_and_evaluation_have_their_own_capacity():
    layer = make_layer(config(capacity_factor=0.5, eval_capacity_factor=float(E)), D)
    x, _, _ = inputs()
    _, train = apply(layer, x, train=True)
    _, evaluation = apply(layer, x, train=False)
    assert train["dropped_by_rank"].sum() > 0
    assert evaluation["dropped_by_rank"].sum() == 0


@pytest.mark.parametrize("activation", ["gelu", "swiglu", "geglu"])
def test_gated_and_plain_experts_compute_what_a_feed_forward_of_the_same_weights_does(activation):
    """One expert that takes every token, gate 1, is a dense feed-forward network."""
    moe = config(num_experts=1, activation=activation, capacity_factor=1.0)
    layer = make_layer(moe, D)
    dense = FeedForward(D, F, activation, nnx.initializers.zeros, nnx.Rngs(0), jnp.float64)
    for name in ("gate", "up", "down"):
        if getattr(dense, name) is not None:
            getattr(dense, name)[...] = getattr(layer.experts, name)[0]
    x, _, _ = inputs()
    y, _ = apply(layer, x)
    act = {"gelu": jax.nn.gelu, "geglu": jax.nn.gelu, "swiglu": jax.nn.silu}[activation]
    up = x @ dense.up[...]
    hidden = act(up) if activation == "gelu" else act(x @ dense.gate[...]) * up
    np.testing.assert_allclose(y, hidden @ dense.down[...], rtol=1e-10)
    graphdef, state = nnx.split(dense)
    ff = on_one_device(lambda state, x: nnx.merge(graphdef, state)(x))(state, x)
    np.testing.assert_allclose(ff, y, rtol=1e-10)


def test_shared_experts_see_every_token_whatever_was_dropped():
    moe = config(top_k=1, capacity_factor=0.25)
    plain = make_layer(moe, D)
    both = make_layer(config(top_k=1, capacity_factor=0.25, num_shared_experts=2, shared_d_ff=2 * F + 3), D)
    assert both.shared.up.shape == (D, 2 * F + 3)
    nnx.update(both, nnx.state(plain))
    x, _, _ = inputs()
    shared = np.maximum(x @ both.shared.up[...], 0) @ both.shared.down[...]
    np.testing.assert_allclose(apply(both, x)[0], apply(plain, x)[0] + shared, rtol=1e-9, atol=1e-12)


def test_dispatchers_agree_on_every_shape_of_group():
    """Odd sizes, one token a group, one expert, one slot."""
    for tokens, experts, top_k, factor in ((1, 3, 2, 1.0), (7, 1, 1, 1.0), (13, 7, 3, 0.1), (12, 4, 4, 8.0)):
        outputs = []
        x = np.random.default_rng(tokens).normal(size=(2, tokens, D))
        for dispatcher in CARRY_SLOTS:
            moe = config(
                num_experts=experts, top_k=top_k, router="top_k", capacity_factor=factor, group_size=tokens,
                dispatcher=dispatcher,
            )  # fmt: skip
            outputs.append(apply(make_layer(moe, D), x))
        for one, other in itertools.pairwise(outputs):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), one, other)


@pytest.mark.parametrize("dispatcher", CARRY_SLOTS)
def test_bfloat16_outputs_are_weighed_by_float32_gates_and_rounded_once(dispatcher):
    """Experts that pass on the positive part of their input leave the sum over the gates as the only inexact step."""
    moe = config(top_k=2, router="top_k", capacity_factor=float(E), d_ff=D, dispatcher=dispatcher)
    layer = make_layer(moe, D)
    for weight in (layer.experts.up, layer.experts.down):
        weight[...] = jnp.broadcast_to(jnp.eye(D), weight.shape)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(G, T, D)), jnp.bfloat16)
    y, _ = apply(layer, x)
    assert y.dtype == jnp.bfloat16
    graphdef, state = nnx.split(layer.router)
    gate = on_one_device(lambda state, x: nnx.merge(graphdef, state)(x, plain_context((G, T))).gate)(state, x)
    assert gate.dtype == jnp.float32

    positive = np.maximum(np.asarray(x, np.float64), 0)
    weighed = lambda gate: np.asarray(gate, np.float64).sum(-1, keepdims=True) * positive
    bound = 2.0**-8 * (1 + 1e-4) * weighed(gate)  # half a unit in the last place
    assert np.all(np.abs(np.asarray(y, np.float64) - weighed(gate)) <= bound)
    rounded_first = np.asarray(jnp.asarray(weighed(gate.astype(jnp.bfloat16)), jnp.bfloat16), np.float64)
    assert np.any(np.abs(rounded_first - weighed(gate)) > bound)
