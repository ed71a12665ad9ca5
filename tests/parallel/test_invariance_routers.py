"""The first step of every router on eight devices is that on one: draws, groups of tokens and biases included."""

import jax
import pytest
from invariance import assert_equal_to, make_run, train

ROUTERS = {
    "DeepSeek-V3": {
        **{"moe.router": "sigmoid", "moe.expert_groups": 4, "moe.top_groups": 2, "moe.group_score": "top2"},
        **{"moe.bias_rate": 0.001, "moe.routed_scaling": 2.5, "moe.normalize_gates": True},
    },
    "null experts": {
        **{"moe.null_experts": 2, "moe.router_bias": True},
        **{"moe.temperature": 2.0, "moe.final_temperature": 0.5, "moe.normalize_gates": False},
    },
    "noisy_top_k": {"moe.router": "noisy_top_k"},
    "sinkhorn": {"moe.router": "sinkhorn"},
    "hash": {"moe.router": "hash", "moe.jitter": 0.0, "moe.z_loss": 0.0},
    "random": {"moe.router": "random", "moe.jitter": 0.0, "moe.z_loss": 0.0},
}
MESH = {"data": 2, "expert": 2, "tensor": 2}


@pytest.mark.parametrize("fields", ROUTERS.values(), ids=ROUTERS)
def test_results_do_not_depend_on_the_mesh(fields):
    fields = {"model.num_layers": 2, "moe.normalize_gates": False, **fields}
    with jax.enable_x64(True):
        expected, actual = (train(make_run(mesh, 4, "capacity", "float64", **fields), 1) for mesh in ({}, MESH))
        assert_equal_to(expected, actual, 1e-9)
