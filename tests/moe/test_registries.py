"""A measure, a loss or a penalty is added with one entry, and everything that loops over the entries has it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from one_device import apply, make_layer, on_one_device

from moe_jax.config import MoEConfig
from moe_jax.moe.context import plain_context
from moe_jax.moe.losses import LOSSES, Loss, auxiliary_losses, weighted
from moe_jax.moe.measures import MEASURES, Measure, routing_stats, scalars, stats_of_layers
from moe_jax.moe.observe import num_sums
from moe_jax.moe.penalties import PENALTIES
from moe_jax.moe.routers import ROUTERS
from moe_jax.moe.sums import tokens
from moe_jax.train.shown import curves
from moe_jax.train.step import StepMetrics

T, D, E = 6, 3, 4


def config(**fields) -> MoEConfig:
    return MoEConfig(**{"num_experts": E, "d_ff": 4, "activation": "relu", "group_size": T, **fields})


def gates(observed):
    """Gates of each rank."""
    return jnp.sum(observed.routing.gate, axis=(0, 1))


def sums_of_layers(moe, seeds=(0, 1)):
    x = np.random.default_rng(0).normal(size=(2, T, D)).astype(np.float32)
    by_layer = [apply(make_layer(moe, D, seed), x)[1] for seed in seeds]
    return jax.tree.map(lambda *layers: jnp.stack(layers), *by_layer)


def test_a_measure_is_shown_by_its_name(monkeypatch):
    """The mean gate of each rank, and of the first rank in each layer."""
    monkeypatch.setitem(MEASURES, "gate", Measure((gates, tokens), lambda s: s["gates"] / s["tokens"][:, None], "rank"))
    first = lambda s: s["gates"][:, 0] / s["tokens"]
    monkeypatch.setitem(MEASURES, "first_gate", Measure((gates, tokens), first, by_layer=True))
    sums = sums_of_layers(config(router="top_k", top_k=2))
    mean = np.asarray(sums["gates"]) / 12  # [M, K], over two groups of six tokens
    stats = routing_stats(sums)
    np.testing.assert_allclose(stats["gate"], mean, rtol=1e-6)
    expected = {f"gate_{rank}": mean[:, rank].mean() for rank in range(2)}
    expected |= {f"first_gate_layer_{layer}": mean[layer, 0] for layer in range(2)}
    expected["first_gate"] = mean[:, 0].mean()
    zero, by_layer = jnp.zeros(()), jnp.zeros(2)
    shown = curves(StepMetrics(zero, {}, zero, jnp.ones(1, bool), zero, (stats,), by_layer, by_layer))
    named = dict(scalars(stats_of_layers([stats])))
    for name, value in expected.items():
        assert named[name] == pytest.approx(value, rel=1e-5)
        assert shown[f"moe/{name}"] == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_a_loss_is_there_where_the_field_of_its_name_has_a_weight(monkeypatch, weight):
    monkeypatch.setitem(LOSSES, "jitter", Loss(lambda moe: (gates,), lambda sums, moe, before: sums["gates"].sum(-1)))
    moe = config(router="top_k", top_k=2, jitter=weight, balance_loss=0.0)
    sums = sums_of_layers(moe)
    losses = auxiliary_losses(moe, [sums])
    assert ("gates" in sums) == ("jitter" in losses) == bool(weight)
    if weight:
        np.testing.assert_allclose(losses["jitter"], np.sum(sums["gates"]), rtol=1e-6)
        np.testing.assert_allclose(weighted(moe, losses), weight * np.sum(sums["gates"]), rtol=1e-6)


def test_a_penalty_is_of_the_routers_own_weights_once_a_layer(monkeypatch):
    monkeypatch.setitem(PENALTIES, "squares", lambda weight: jnp.sum(jnp.square(weight)))
    moe = config(router="sigmoid", penalty="squares", penalty_loss=0.5, balance_loss=0.0)
    losses = auxiliary_losses(moe, [sums_of_layers(moe)])
    expected = sum(np.sum(np.square(make_layer(moe, D, seed).router.weight[...])) for seed in (0, 1))
    np.testing.assert_allclose(losses["penalty_loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(weighted(moe, losses), 0.5 * expected, rtol=1e-5)


@pytest.mark.parametrize("name", ROUTERS)
def test_the_number_of_sums_is_known_before_anything_runs(name):
    """The same as of the layer itself; Soft MoE has a single rank where others that fill their slots have E."""
    router = ROUTERS[name]
    fields = {"router": name, "top_k": router.required_top_k or 2, **router.fixed_fields}
    options = {"null_experts": 1, "load_loss": 1.0, "bias_rate": 0.1}
    fields |= {option: value for option, value in options.items() if option in router.options}
    fields |= {} if "importance_loss" in router.fixed_fields else {"importance_loss": 1.0, "balance_scope": "sequence"}
    moe = config(**fields)
    graphdef, weights = nnx.split(make_layer(moe, D))

    def sums_of_layer(weights, x):
        return nnx.merge(graphdef, weights)(x, plain_context((2, T)), True)[1]

    sums = jax.eval_shape(on_one_device(sums_of_layer), weights, jnp.zeros((2, T, D)))
    real = sum(math.prod(value.shape) for value in sums.values())
    assert num_sums(moe) - real == (2 * (E - 1) if name == "soft" else 0)
