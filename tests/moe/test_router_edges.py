"""Routers at their edges, worked by hand: ties, extremes, NaN, padding, limits, and the ones that learn nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from one_device import apply, make_layer, on_one_device
from router_tables import LEARNED, UNLEARNED

from moe_jax.config import MoEConfig
from moe_jax.moe.context import Context, plain_context
from moe_jax.moe.losses import auxiliary_losses, sequence_balance, sequences
from moe_jax.moe.router import CARRY_SLOTS
from moe_jax.moe.routers import ROUTERS
from moe_jax.moe.routers.controls import hash_words
from moe_jax.moe.routing import pick
from moe_jax.moe.sums import Observed
from moe_jax.parallel.sharding import fan_in_init

E = 4
ALL = [*LEARNED, *UNLEARNED]


def config(router, top_k, fields=None, num_experts=E) -> MoEConfig:
    return MoEConfig(num_experts=num_experts, router=router, top_k=top_k, **(fields or {}))


def route(moe, logits, valid=None, keys=None, ids=None, train=True, balance_bias=None):
    """Routing of one group whose tokens have these logits [T, E + null experts]."""
    logits = jnp.asarray(logits, jnp.float32)
    tokens = logits.shape[0]
    router = ROUTERS[moe.router](tokens, moe, fan_in_init(1.0), nnx.Rngs(params=0))
    if hasattr(router, "weight"):
        assert router.weight.shape == logits.shape, f"{moe.router}: see NO_EDGES in router_tables.py"
        router.weight[...] = logits
    if balance_bias is not None:
        router.balance_bias[...] = jnp.asarray(balance_bias)
    graphdef, state = nnx.split(router)
    valid = jnp.ones((1, tokens), bool) if valid is None else jnp.asarray(valid)[None]
    ids = jnp.zeros((1, tokens), jnp.int32) if ids is None else jnp.asarray(ids, jnp.int32)[None]
    context = Context(ids, valid, keys, jnp.int32(0), train)
    return jax.jit(on_one_device(lambda state: nnx.merge(graphdef, state)(jnp.eye(tokens)[None], context)))(state)


def width(moe):
    return moe.num_experts + moe.null_experts


@pytest.mark.parametrize(("name", "top_k", "fields"), LEARNED)
def test_equal_logits_go_to_the_first_experts_in_equal_parts(name, top_k, fields):
    moe = config(name, top_k, fields)
    routing = route(moe, np.full((3, width(moe)), 0.7))
    np.testing.assert_array_equal(routing.expert, np.broadcast_to(np.arange(top_k), (1, 3, top_k)))
    np.testing.assert_allclose(routing.gate, routing.gate[:1, :1, :1] * np.ones((1, 3, top_k)), rtol=1e-6)
    np.testing.assert_allclose(routing.probabilities, 1 / width(moe), rtol=1e-6)


@pytest.mark.parametrize(("name", "top_k", "fields"), LEARNED)
@pytest.mark.parametrize("size", [1e4, 1e30])
def test_extreme_logits_leave_gates_probabilities_and_gradients_finite(name, top_k, fields, size):
    moe = config(name, top_k, fields)
    n = width(moe)
    logits = size * np.stack([np.arange(n) - n, -np.arange(n), np.eye(n)[1], -np.ones(n)])
    graphdef, state = nnx.split(ROUTERS[name](n, moe, fan_in_init(1.0), nnx.Rngs(params=0)))
    state["weight"][...] = jnp.eye(n)
    context = Context(jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool), None, jnp.int32(0), True)

    def loss(state):
        routing = nnx.merge(graphdef, state)(jnp.asarray(logits, jnp.float32)[None], context)
        load = 0 if routing.smooth_load is None else jnp.sum(routing.smooth_load)
        return jnp.sum(routing.gate) + jnp.sum(routing.probabilities[..., 0]) + load, routing

    gradient, routing = jax.jit(jax.grad(on_one_device(loss), has_aux=True))(state)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((gradient, routing)))
    np.testing.assert_allclose(np.sum(routing.probabilities, -1), 1, rtol=1e-5)
    if name != "sinkhorn":
        assert routing.expert[0, 2, 0] == 1


def test_noise_of_a_deviation_that_underflows_leaves_load_and_gradients_finite():
    """Softplus of -200 is zero in float32."""
    moe = config("noisy_top_k", 2)
    graphdef, state = nnx.split(ROUTERS["noisy_top_k"](1, moe, fan_in_init(1.0), nnx.Rngs(params=0)))
    state["weight"][...], state["noise"][...] = jnp.array([[3.0, 2, 2, 1]]), jnp.full((1, E), -200.0)
    context = plain_context((1, 1))

    def load(state):
        smooth = nnx.merge(graphdef, state)(jnp.ones((1, 1, 1)), context).smooth_load
        return smooth[0, 0, 0] + 2 * smooth[0, 0, 1], smooth

    gradient, smooth = jax.jit(jax.grad(on_one_device(load), has_aux=True))(state)
    np.testing.assert_allclose(smooth, [[[1, 0.5, 0.5, 0]]])
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(("name", "top_k", "fields"), [*LEARNED, ("expert_choice", 2, {})])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_nan_logit_makes_every_gate_of_its_token_nan_and_of_no_other(name, top_k, fields, sign):
    """A NaN of either sign, wherever the sorting puts it."""
    moe = config(name, top_k, fields)
    x = np.eye(3, dtype=np.float32)
    router = ROUTERS[name](3, moe, fan_in_init(1.0), nnx.Rngs(params=0))
    graphdef, state = nnx.split(router)
    poisoned = jnp.zeros((3, width(moe))).at[1, -1].set(np.copysign(np.nan, sign))

    def gates(state):
        router = nnx.merge(graphdef, state)
        router.logits = lambda x, step: jnp.broadcast_to(poisoned, (1, *poisoned.shape))
        context = Context(jnp.zeros((1, 3), jnp.int32), jnp.ones((1, 3), bool), None, jnp.int32(0), True, capacity=1)
        return router(jnp.asarray(x)[None], context).gate

    gate = on_one_device(gates)(state)
    assert np.all(np.isnan(gate[0, 1]))
    assert np.all(np.isfinite(gate[0, [0, 2]]))


@pytest.mark.parametrize("dispatcher", CARRY_SLOTS)
@pytest.mark.parametrize("name", ["top_k", "expert_choice"])
def test_a_nan_logit_makes_the_output_of_its_token_nan_slot_or_not_and_of_no_other(name, dispatcher):
    """One slot an expert: the poisoned tokens, the first and the last of a group, cannot both have one."""
    moe = MoEConfig(
        num_experts=2, router=name, d_ff=4, activation="relu", group_size=6, capacity_factor=1 / 3,
        dispatcher=dispatcher,
    )  # fmt: skip
    poisoned = jnp.zeros((2, 6, 2)).at[0, ::5, 1].set(jnp.nan)
    graphdef, state = nnx.split(make_layer(moe, 3))

    def output(state, x):
        layer = nnx.merge(graphdef, state)
        layer.router.logits = lambda x, step: poisoned
        return layer(x, plain_context(x.shape[:2]), True)[0]

    y = jax.jit(on_one_device(output))(state, jnp.ones((2, 6, 3)))
    np.testing.assert_array_equal(np.isnan(y), np.broadcast_to(np.isnan(poisoned[..., 1:]), y.shape))


@pytest.mark.parametrize(("name", "top_k", "fields"), ALL)
def test_padding_changes_nothing_for_others_and_wants_nothing(name, top_k, fields):
    moe = config(name, top_k, fields)
    logits = np.random.default_rng(0).normal(size=(6, width(moe)))
    other = logits.copy()
    other[[1, 4]] = 30 * np.eye(width(moe))[0]
    valid = np.array([True, False, True, True, False, True])
    one, two = (route(moe, values, valid, ids=range(6)) for values in (logits, other))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        of_valid = lambda array: array[:, valid] if array.ndim > 1 else array  # the balance bias has no tokens
        np.testing.assert_array_equal(of_valid(a), of_valid(b))
    assert not np.any(one.wanted[:, ~valid])


@pytest.mark.parametrize(("name", "top_k", "fields"), ALL)
def test_dispatchers_agree(name, top_k, fields):
    moe = MoEConfig(
        num_experts=E, router=name, top_k=top_k, d_ff=8, activation="relu", group_size=20, capacity_factor=0.8, **fields
    )
    rng = np.random.default_rng(0)
    x, ids = rng.normal(size=(2, 20, 6)).astype(np.float32), rng.integers(0, 9, (2, 20)).astype(np.int32)
    valid, keys = rng.random((2, 20)) > 0.2, jax.random.split(jax.random.key(1), 2)
    (y, sums), (y_other, sums_other) = (
        apply(make_layer(dataclasses.replace(moe, dispatcher=dispatcher), 6), x, valid, keys, ids=ids)
        for dispatcher in ROUTERS[name].dispatchers[:2]  # those with slots
    )
    np.testing.assert_allclose(y, y_other, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), sums, sums_other)
    assert np.any(y != 0) and sums["dropped_by_rank"].sum() > 0


@pytest.mark.parametrize(("name", "scores"), [("switch", [0.5, 0.3, 0.2]), ("sigmoid", [0.9, 0.8, 0.3])])
def test_the_balance_bias_moves_the_choice_and_leaves_the_gate(name, scores):
    scores = np.array(scores)
    logits = np.log(scores) if name == "switch" else np.log(scores / (1 - scores))
    moe = config(name, 1, {"bias_rate": 0.001}, num_experts=3)
    chosen = lambda bias: (lambda r: (int(r.expert[0, 0, 0]), float(r.gate[0, 0, 0])))(
        route(moe, [logits], balance_bias=bias)
    )
    gap = scores[0] - scores[1]
    assert chosen([0.0, 0, 0]) == (0, pytest.approx(scores[0]))
    assert chosen([0.0, gap - 0.01, 0]) == (0, pytest.approx(scores[0]))
    assert chosen([0.0, gap + 0.01, 0]) == (1, pytest.approx(scores[1]))
    assert chosen([-0.9, -0.9, 0]) == (2, pytest.approx(scores[2]))


def test_the_sequence_loss_counts_the_most_probable_expert_not_the_one_that_the_bias_chose():
    """DeepSeek-V3, equation 18. The sigmoids of 1, 1/2, 0 and -1 add up to 2.122, of which 0.731 is the first."""
    moe = config("sigmoid", 1, {"bias_rate": 0.001})
    routing = route(moe, [[1.0, 0.5, 0, -1]] * 4, balance_bias=[0.0, 0, 0, 5])
    np.testing.assert_array_equal(routing.expert, 3)
    observed = Observed(routing, routing.wanted, 1)
    np.testing.assert_allclose(sequence_balance(observed), 1.378, rtol=1e-3)
    assert sequences(observed) == 1


def test_pick_sees_the_chosen_values_alone():
    values, expert = jnp.array([[[2.0, jnp.nan, -jnp.inf]]]), jnp.array([[[0, 3]]])
    np.testing.assert_array_equal(jax.jit(pick)(values, expert), [[[2, 0]]])
    with jax.disable_jit():  # inside a fusion XLA may take 0 * inf for 0
        np.testing.assert_array_equal(pick(values, expert), [[[2, 0]]])
    gradient = jax.grad(lambda values: jnp.sum(pick(values, expert)))(values)
    np.testing.assert_array_equal(gradient, [[[1, 0, 0]]])


# Three groups of two experts. The best expert is in the first group, the best pair in the second.
GROUPED = np.array([0.9, 0.1, 0.8, 0.7, 0.2, 0.6])


@pytest.mark.parametrize(
    ("group_score", "top_groups", "bias", "experts"),
    [
        ("max", 1, 0, [0, 1]),
        ("top2", 1, 0, [2, 3]),
        ("max", 2, 0, [0, 2]),
        ("top2", 2, 0, [0, 2]),
        ("top2", 1, [0, 0, 0, -0.5, 0.3, 0.3], [5, 4]),  # sums 1.0, 1.0 and 1.4
        ("max", 1, [-2.0, -2.0, -2.0, -2.0, -2.0, -1.0], [5, 4]),  # negative scores are not worth less than no expert
    ],
)
def test_groups_are_chosen_by_their_best_experts(group_score, top_groups, bias, experts):
    fields = {"expert_groups": 3, "top_groups": top_groups, "group_score": group_score, "bias_rate": 0.1}
    moe = config("sigmoid", 2, fields, num_experts=6)
    routing = route(moe, [np.log(GROUPED / (1 - GROUPED))], balance_bias=np.zeros(6, np.float32) + np.float32(bias))
    np.testing.assert_array_equal(routing.expert, [[experts]])
    np.testing.assert_allclose(routing.gate, [[GROUPED[experts]]], rtol=1e-5)


@pytest.mark.parametrize("name", ["top_k", "sigmoid"])
def test_a_token_visits_at_most_so_many_groups(name):
    logits = np.random.default_rng(0).normal(size=(200, 16))
    groups = lambda fields: np.asarray(route(config(name, 4, fields, num_experts=16), logits).expert[0]) // 2
    spread = lambda fields: np.array([len(set(row)) for row in groups(fields)])
    assert spread({"expert_groups": 8, "top_groups": 3}).max() == 3
    assert spread({}).max() == 4


def test_the_mass_of_null_experts_is_lost():
    moe = MoEConfig(
        num_experts=2, null_experts=1, router="top_k", top_k=2, normalize_gates=True, d_ff=4, activation="relu",
        group_size=3, capacity_factor=3.0, importance_loss=1.0,
    )  # fmt: skip
    layer = make_layer(moe, 3)
    layer.router.weight[...] = jnp.log(jnp.array([[0.6, 0.1, 0.3], [0.1, 0.5, 0.4], [0.5, 0.4, 0.1]]))
    x = np.eye(3, dtype=np.float32)[None]
    y, sums = apply(layer, x)
    up, down = np.asarray(layer.experts.up[...]), np.asarray(layer.experts.down[...])
    out = lambda e: np.maximum(x[0] @ up[e], 0) @ down[e]
    gates = np.array([[2 / 3, 0], [0, 5 / 9], [5 / 9, 4 / 9]])  # of the routed experts
    np.testing.assert_allclose(y[0], gates[:, :1] * out(0) + gates[:, 1:] * out(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(sums["choices"], [2, 2, 2])
    np.testing.assert_array_equal(sums["wanted_by_rank"], [3, 1])
    np.testing.assert_allclose(sums["importance"], [11 / 9, 1, 0], rtol=1e-5)
    losses = auxiliary_losses(moe, [jax.tree.map(lambda s: s[None], sums)])
    np.testing.assert_allclose(losses["importance_loss"], 0.01, rtol=1e-4)  # mean 10/9, deviation 1/9
    assert sums["dropped_by_rank"].sum() == 0


def test_sinkhorn_shares_out_what_one_expert_would_get():
    """All tokens like expert 0 most; in training their weaker preferences decide, in evaluation they all go there."""
    logits = 0.3 * np.random.default_rng(0).normal(size=(64, 4)) + [5.0, 0, 0, 0]
    moe = config("sinkhorn", 1, {"sinkhorn_iterations": 50})
    load = lambda train: np.bincount(np.asarray(route(moe, logits, train=train).expert).ravel(), minlength=4)
    np.testing.assert_array_equal(load(False), [64, 0, 0, 0])
    assert np.all(np.abs(load(True) - 16) <= 6)


def test_sinkhorn_of_a_group_of_padding_is_finite():
    routing = route(config("sinkhorn", 1), np.zeros((4, 4)), valid=np.zeros(4, bool))
    assert np.all(np.isfinite(routing.gate)) and not np.any(routing.wanted)


@pytest.mark.parametrize("top_k", [1, 3])
def test_a_hash_depends_on_the_token_id_alone_and_is_balanced(top_k):
    moe, ids = config("hash", top_k, num_experts=8), np.arange(4096)
    one = route(moe, np.zeros((4096, 8)), ids=ids)
    reverse = route(moe, np.ones((4096, 8)), ids=ids[::-1], keys=jax.random.split(jax.random.key(3), 1), train=False)
    np.testing.assert_array_equal(one.expert[0], reverse.expert[0, ::-1])
    assert_uniform(np.asarray(one.expert[0]), top_k)
    np.testing.assert_allclose(one.gate, 1 / top_k)
    np.testing.assert_array_equal(one.wanted, True)


def test_hashes_are_the_same_in_every_run():
    np.testing.assert_array_equal(hash_words(jnp.arange(3)), [3758135754, 1416202813, 4056694831])
    np.testing.assert_array_equal(hash_words(*2 * [jnp.arange(3)]), [3893275874, 2438274016, 3273864542])
    expert = route(config("hash", 3, num_experts=8), np.zeros((4, 8)), ids=range(4)).expert
    np.testing.assert_array_equal(expert, [[[3, 2, 6], [0, 3, 1], [7, 1, 2], [5, 2, 4]]])


def assert_uniform(expert, top_k, experts=8):
    """No expert twice; every rank takes each expert equally often; the second is independent of the first."""
    assert all(len(set(row)) == top_k for row in expert)
    for rank in range(top_k):
        count = np.bincount(expert[:, rank], minlength=experts)
        assert np.sum((count - len(expert) / experts) ** 2) * experts / len(expert) < 24.3  # chi-square, 7: p = 0.001
    if top_k > 1:
        pairs = np.bincount(expert[:, 0] * experts + expert[:, 1], minlength=experts**2)
        wanted = len(expert) / (experts * (experts - 1))
        possible = ~np.eye(experts, dtype=bool).ravel()
        assert np.sum((pairs[possible] - wanted) ** 2) / wanted < 93.2  # chi-square, 55: p = 0.001


@pytest.mark.parametrize("keys", [None, 3], ids=["evaluation", "training"])
def test_random_is_uniform_and_repeatable(keys):
    moe, logits = config("random", 2, num_experts=8), np.zeros((4096, 8))
    keys_of = lambda seed: None if keys is None else jax.random.split(jax.random.key(seed), 1)
    expert = route(moe, logits, keys=keys_of(3)).expert[0]
    assert_uniform(np.asarray(expert), 2)
    np.testing.assert_array_equal(expert, route(moe, logits, keys=keys_of(3)).expert[0])
    other = route(moe, logits, keys=keys_of(4), ids=np.full(4096, 7)).expert[0]  # other draws, or other tokens
    assert abs(np.mean(other[:, 0] == expert[:, 0]) - 1 / 8) < 0.02


def test_the_balance_loss_of_a_router_without_probabilities_is_that_of_its_loads():
    routing = route(config("hash", 2), np.zeros((50, E)), ids=np.arange(50))
    load = np.bincount(np.asarray(routing.expert).ravel(), minlength=E) / 100
    np.testing.assert_allclose(np.mean(routing.probabilities, axis=(0, 1)), load, rtol=1e-5)
    assert not jax.tree.leaves(nnx.state(ROUTERS["hash"](8, config("hash", 2), fan_in_init(1.0), nnx.Rngs(params=0))))


@pytest.mark.parametrize("router", ["switch", "sigmoid"])
def test_a_bfloat16_router_rounds_logits_and_gates(router):
    moe = config(router, 1, {"router_dtype": "bfloat16"})
    logits = np.random.default_rng(0).normal(size=(40, E))
    routing = route(moe, logits)
    exact = route(config(router, 1), logits)
    rounded = lambda values: np.asarray(values.astype(jnp.bfloat16).astype(jnp.float32))
    for name in ("logits", "gate", "probabilities"):
        value = getattr(routing, name)
        assert value.dtype == jnp.float32
        np.testing.assert_array_equal(value, rounded(value))
        assert np.any(value != getattr(exact, name))
    np.testing.assert_array_equal(routing.logits, rounded(exact.logits))
    np.testing.assert_allclose(routing.gate, exact.gate, rtol=0.03)
