"""Every way across the mesh gives the result of one device: values, statistics, drops and gradients, in float64."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest
from layer_on_mesh import assert_same, inputs, layer_moe, run_layer

from moe_jax.config import MoEConfig
from moe_jax.moe.delivery import _allowed
from moe_jax.moe.grouped_matmul import IMPLEMENTATIONS
from moe_jax.moe.levels import balanced_rows, level_rows, levels_of, most_rows

WAYS = {
    "capacity": {},
    "capacity, once": {"exchange_unique": True},
    "capacity, once to a node": {"exchange_unique": True, "exchange_nodes": 2},
    "dropless, all_gather": {"dispatcher": "dropless"},
    "dropless, all_to_all": {"dispatcher": "dropless", "exchange": "all_to_all"},
    "dropless, once": {"dispatcher": "dropless", "exchange": "all_to_all", "exchange_unique": True},
    "dropless, once to a node": {
        "dispatcher": "dropless", "exchange": "all_to_all", "exchange_unique": True, "exchange_nodes": 2,
    },
    "dropless, ragged": {"dispatcher": "dropless", "exchange": "ragged"},
    "dropless, ragged, once": {"dispatcher": "dropless", "exchange": "ragged", "exchange_unique": True},
}  # fmt: skip
MESHES = ({"expert": 8}, {"data": 2, "expert": 4}, {"fsdp": 2, "expert": 2, "tensor": 2})
KINDS = {
    "plain": {},
    "dropout, shared and null experts": {
        "expert_dropout": 0.25, "num_shared_experts": 1, "shared_d_ff": 8, "null_experts": 2, "jitter": 0.1,
    },
    "input gates, biases": {"router": "llama4", "normalize_gates": False, "expert_bias": True, "balance_loss": 0.0},
    "second expert at random": {"router": "gshard", "top_k": 2, "second_expert": "random", "normalize_gates": False},
    "node-limited": {"router": "sigmoid", "top_k": 2, "expert_groups": 4, "top_groups": 2, "group_score": "max"},
}  # fmt: skip


@functools.cache
def on_one_device(kind, dispatcher, skew=0.0):
    return run_layer(layer_moe(**KINDS[kind], dispatcher=dispatcher), {}, skew)


def quick(way, mesh, kind):
    """Rows of `make test`: each way on one mesh with the features that travel, and the widest axis with nodes."""
    if kind == "dropout, shared and null experts":
        return mesh == MESHES[1]
    return kind == "input gates, biases" and mesh == MESHES[2] and way == "dropless, ragged, once"


ROWS = [
    pytest.param(way, mesh, kind, marks=[] if quick(way, mesh, kind) else pytest.mark.slow)
    for way in WAYS
    for mesh in MESHES
    for kind in KINDS
    if not (WAYS[way].get("exchange_nodes") and mesh["expert"] == 2)
]


@pytest.mark.parametrize(("way", "mesh", "kind"), ROWS, ids=str)
def test_every_way_is_that_of_one_device(way, mesh, kind):
    fields = WAYS[way]
    expected = on_one_device(kind, fields.get("dispatcher", "capacity"))
    assert_same(run_layer(layer_moe(**KINDS[kind], **fields), mesh), expected)


@pytest.mark.parametrize("mesh", [{}, {"fsdp": 8}], ids=str)
def test_where_nothing_is_exchanged_the_fields_of_the_exchange_change_nothing(mesh):
    moe = layer_moe(exchange_unique=True, exchange_bound=0.5)
    assert_same(run_layer(moe, mesh), on_one_device("plain", "capacity"))


@pytest.mark.parametrize("kind", ["plain", "dropout, shared and null experts", "input gates, biases"])
def test_dropless_is_capacity_with_a_slot_for_everyone(kind):
    """Draws of expert dropout and of the router's noise included."""
    roomy = run_layer(layer_moe(**KINDS[kind], capacity_factor=100.0), {})
    assert_same(on_one_device(kind, "dropless"), roomy)
    assert np.sum(roomy[1]["dropped_by_rank"]) == 0
    assert np.sum(on_one_device(kind, "capacity")[1]["dropped_by_rank"]) > 0  # what is dropped is seen


ROOMY = {"capacity_factor": 100.0}


@pytest.mark.slow
def test_dropless_has_the_adapters_of_its_experts():
    expected = run_layer(layer_moe(**ROOMY), {}, lora=2)
    assert_same(run_layer(layer_moe(dispatcher="dropless", exchange="ragged"), MESHES[1], lora=2), expected)
    assert np.max(np.abs(expected[0] - on_one_device("plain", "dropless")[0])) > 0.1


def test_dropless_rounds_what_crosses_the_mesh_as_capacity_does():
    fields = {"exchange_dtype": "bfloat16"}
    rounded = run_layer(layer_moe(**ROOMY, **fields), {"expert": 8})
    assert_same(run_layer(layer_moe(dispatcher="dropless", exchange="ragged", **fields), {"expert": 8}), rounded)
    apart = np.abs(rounded[0] - on_one_device("plain", "dropless")[0])
    assert 1e-4 < np.max(apart) < 0.1


def test_dropless_multiplies_by_the_implementation_that_is_named(monkeypatch):
    called, named = [], IMPLEMENTATIONS["ragged_dot"]
    multiply = lambda *operands, **settings: called.append(len(operands)) or named.multiply(*operands, **settings)
    monkeypatch.setitem(IMPLEMENTATIONS, "ragged_dot", named._replace(multiply=multiply))
    moe = layer_moe(dispatcher="dropless", grouped_matmul="ragged_dot")
    assert_same(run_layer(moe, {}), on_one_device("plain", "dropless"))
    assert called


def test_a_device_takes_all_rows_that_it_has_room_for():
    """Three devices; columns are receivers, the first senders come first."""
    wanted = jnp.array([[4, 0, 5], [4, 1, 1], [4, 1, 9]])
    np.testing.assert_array_equal(_allowed(wanted, 6), [[4, 0, 5], [2, 1, 1], [0, 1, 0]])


SKEWED = ("capacity, once", "dropless, once to a node", "dropless, ragged")


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=() if way == "capacity, once" else pytest.mark.slow) for way in SKEWED]
)
def test_the_most_skewed_routing_is_carried_too(way):
    """Every token's first choice is expert 5."""
    moe = layer_moe(**WAYS[way])
    expected = on_one_device("plain", moe.dispatcher if moe.dispatcher == "dropless" else "capacity", skew=50.0)
    actual = run_layer(moe, MESHES[1], skew=50.0)
    assert_same(actual, expected)
    _, _, valid = inputs()
    assert actual[1]["choices"][5] == valid.sum()


@pytest.mark.parametrize(
    "fields",
    [
        {"exchange": "all_to_all", "exchange_bound": 0.5},
        {"exchange": "all_to_all", "exchange_bound": 0.7, "exchange_unique": True},
        pytest.param({"exchange": "ragged", "exchange_bound": 0.6}, marks=pytest.mark.slow),
        {"exchange": "ragged", "exchange_bound": 0.6, "exchange_unique": True},
    ],
    ids=str,
)
def test_what_a_bound_leaves_out_is_counted_and_the_rest_is_unharmed(fields):
    """A token that loses nothing has the output that it has without a bound."""
    exact = on_one_device("plain", "dropless")
    bounded = run_layer(layer_moe(dispatcher="dropless", **fields), {"expert": 4, "data": 2})
    lost, wanted = np.sum(bounded[1]["dropped_by_rank"]), np.sum(bounded[1]["wanted_by_rank"])
    assert 0.05 * wanted < lost < 0.7 * wanted
    same = np.all(np.isclose(bounded[0], exact[0], rtol=0, atol=1e-12), axis=-1)
    _, _, valid = inputs()
    assert lost / 3 <= np.sum(valid & ~same) <= lost  # each token that differs has lost one, two or all three choices


def test_bounded_rows_stay_within_what_was_said():
    moe = MoEConfig(num_experts=64, top_k=8, exchange_unique=True, dispatcher="dropless", exchange="all_to_all")
    tokens, devices = 4096, 8
    assert most_rows(moe, devices, tokens) == tokens
    # 1 - C(56, 8) / C(64, 8) of the tokens have one of the 8 experts of a device.
    chance = 1 - np.prod([(56 - i) / (64 - i) for i in range(8)])
    assert float(balanced_rows(moe, devices, tokens)) == pytest.approx(tokens * chance)
    bounded = dataclasses.replace(moe, exchange_bound=1.1)
    assert level_rows(bounded, devices, tokens) == int(np.ceil(1.1 * tokens * chance))
    # Against E * C rows of the padded formula, at factor 1.25: 0.8 with the safe buffer, 0.6 with a bound of 1.1.
    slots = 1.25 * 8 * tokens
    assert devices * level_rows(moe, devices, tokens) / slots == pytest.approx(0.8)
    assert devices * level_rows(bounded, devices, tokens) / slots == pytest.approx(0.6, abs=0.02)


def test_a_node_gets_a_token_once_and_spreads_it():
    moe = MoEConfig(num_experts=64, top_k=8, exchange_unique=True, exchange_nodes=4, capacity_factor=2.0, group_size=64)
    across, inside = levels_of(moe, devices=16, tokens=256, slots=4 * 16)
    assert (across.devices, inside.devices) == (4, 4)
    assert across.peers == ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15))
    assert inside.peers == ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11), (12, 13, 14, 15))
    assert across.rows == 256  # each of the tokens, to each node
    assert inside.rows == min(4 * 256, 4 * 4 * 64)
    assert across.addresses == 4 * inside.addresses == 16 * 64 * 16
