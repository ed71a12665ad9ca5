"""What `--suite=routers` times: every router config, as training runs it, beside a control."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.benchmarks import routers as router_benchmark
from moe_jax.benchmarks.routers import (
    CONTROL,
    EXPERTS,
    REFERENCE,
    SIZES,
    Sizes,
    comparisons,
    compiled_pass,
    resized,
    routings,
    training_pass,
)
from moe_jax.config import MoEConfig
from moe_jax.moe.routers import ROUTERS
from moe_jax.resolve.router_configs import router_configs

FILES = {path.stem for path in (Path(__file__).parents[2] / "configs" / "routers").glob("*.py")}
TINY = Sizes(d_model=8, d_ff=16, sequences=4, length=8)
AUXILIARY = ("balance_loss", "balance_scope", "importance_loss", "load_loss", "z_loss", "bias_rate")


@pytest.fixture
def timed(monkeypatch):
    """The layers that the suite compiles, which then does next to nothing."""
    compiled = []

    def nothing(moe, sizes):
        compiled.append((moe, sizes))
        return lambda: jnp.zeros(())

    monkeypatch.setattr(router_benchmark, "compiled_pass", nothing)
    return compiled


def test_every_router_config_is_timed_beside_the_reference_and_its_control(timed, capsys):
    rows = router_benchmark.run(repeats=2)
    assert {row["router"] for row in rows} == FILES | {REFERENCE, CONTROL}
    for comparison in comparisons(router_configs()):
        for experts in EXPERTS:
            key = (comparison.name, experts)
            names = [row["router"] for row in rows if (row["comparison"], row["num_experts"]) == key]
            assert names == [REFERENCE, CONTROL, *comparison.routers]
    assert len(timed) == len(rows)
    table = capsys.readouterr().out
    assert all(f"| {name} |" in table for name in FILES | {CONTROL})
    assert {"median", "lower_quartile", "upper_quartile"} == set(rows[0]["ratio"])
    json.dumps(rows)


def test_layers_of_a_comparison_differ_in_the_router_alone_and_are_trained_as_the_file_says(timed):
    router_benchmark.run(repeats=1)
    shape = {(moe.d_ff, moe.activation, moe.group_size, moe.capacity_factor, sizes) for moe, sizes in timed}
    assert shape == {(SIZES.d_ff, "relu", SIZES.sequences * SIZES.length, 1.0, SIZES)}
    for comparison in comparisons(router_configs()):
        for experts in EXPERTS:
            for name, moe in routings(comparison, experts):
                assert (moe.num_experts, moe.top_k) == (experts, comparison.top_k)
                if name in FILES:
                    same = (*AUXILIARY, "router_bias", "normalize_gates", "null_experts", "group_score")
                    assert all(getattr(moe, field) == getattr(router_configs()[name], field) for field in same)


def test_the_control_is_the_reference():
    for comparison in comparisons(router_configs()):
        layers = dict(routings(comparison, 8))
        assert layers[CONTROL] == layers[REFERENCE]


def test_a_router_that_fills_its_slots_takes_turns_with_the_reference_alone():
    for comparison in comparisons(router_configs()):
        filling = [name for name in comparison.routers if ROUTERS[router_configs()[name].router].fills_slots]
        assert not filling or comparison.routers == tuple(filling[:1])


def test_a_new_file_is_timed_without_another_list():
    configs = {**router_configs(), "new": MoEConfig(router="top_k", num_experts=16, top_k=2)}
    assert [comparison.name for comparison in comparisons(configs) if "new" in comparison.routers] == ["top-2"]


@pytest.mark.parametrize(
    ("name", "experts", "limit"),
    [("deepseek_v2", 8, (2, 4)), ("deepseek_v2", 64, (3, 8)), ("deepseek_v3", 8, (2, 4)), ("deepseek_v3", 64, (4, 8))],
)
def test_group_limits_keep_their_share_rounded_up(name, experts, limit):
    moe = resized(router_configs()[name], experts, 2, SIZES)
    assert (moe.top_groups, moe.expert_groups) == limit


@functools.cache
def gradients(name, **fields):
    """(gradients of the weights, of x, routing sums) of a small layer with this file's routing."""
    moe = resized(dataclasses.replace(router_configs()[name], **fields), 8, 2, TINY)
    function, args = training_pass(moe, TINY)
    (_, sums), (params, x) = jax.jit(function)(*args)
    return params, x, sums


@pytest.mark.parametrize("name", ["noisy_top_k", "gpt_oss", "deepseek_v3"])
def test_all_that_training_uses_is_in_the_compiled_program(name):
    params, x, sums = gradients(name)
    assert all(np.any(np.asarray(leaf)) for leaf in [*jax.tree.leaves(params), x])
    assert np.sum(sums["choices"]) == 2 * TINY.sequences * TINY.length
    assert bool(params["router"].get("bias")) == (name == "gpt_oss")


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("noisy_top_k", "load_loss"),
        ("noisy_top_k", "importance_loss"),
        ("olmoe", "z_loss"),
        ("mixtral", "balance_loss"),
        ("deepseek_v3", "balance_loss"),
    ],
)
def test_each_auxiliary_loss_reaches_the_router(name, loss):
    weight = "noise" if loss == "load_loss" else "weight"
    (with_loss, _, _), (without, _, _) = gradients(name), gradients(name, **{loss: 0.0})
    assert np.any(with_loss["router"][weight][...] != without["router"][weight][...])


def test_the_sequence_loss_is_over_the_sequences_of_the_input():
    _, _, sums = gradients("deepseek_v3")
    assert sums["sequences"] == TINY.sequences
    assert SIZES.sequences > 1


def test_the_load_loss_is_computed_in_what_is_timed():
    """`erf`, of the normal distribution: in the program with the loss, and with no other router."""
    text = {}
    for name in ("noisy_top_k", "mixtral"):
        function, args = training_pass(resized(router_configs()[name], 8, 2, TINY), TINY)
        text[name] = jax.jit(function).lower(*args).compile().as_text()
    assert " erf(" in text["noisy_top_k"] and " erf(" not in text["mixtral"]


def test_the_call_that_is_timed_runs():
    (loss, _), _ = compiled_pass(resized(router_configs()["switch"], 8, 1, TINY), TINY)()
    assert np.isfinite(loss)
