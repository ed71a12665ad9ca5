"""Routers side by side at equal FLOPs per token: top-1 experts of size 64, or two of half that each.

Cost: 21 cells of about 3 minutes on a CPU core.
"""

import runpy
from pathlib import Path

from moe_jax.sweep.derive import equal_flops
from moe_jax.sweep.design import Sweep


def get_config():
    config = runpy.run_path(str(Path(__file__).parents[1] / "switch_small.py"))["get_config"]()
    config.train.steps = 700
    return config


def get_sweep():
    return Sweep(
        [
            {"moe.router": "switch", "moe.top_k": 1, "moe.balance_loss": 0.01},
            {"moe.router": "gshard", "moe.top_k": 2, "moe.second_expert": "random", "moe.balance_loss": 0.01},
            {"moe.router": "top_k", "moe.top_k": 2, "moe.normalize_gates": False, "moe.balance_loss": 0.01},
            {"moe.router": "top_k", "moe.top_k": 2, "moe.normalize_gates": True, "moe.balance_loss": 0.01},
            {"moe.router": "sigmoid", "moe.top_k": 2, "moe.normalize_gates": True, "moe.balance_loss": 0.01},
            {"moe.router": "noisy_top_k", "moe.top_k": 2, "moe.balance_loss": 0.01},
            {"moe.router": "hash", "moe.top_k": 1, "moe.balance_loss": 0.0},
        ],
        seeds=(0, 1, 2),
        derive=[equal_flops(to={"moe.router": "switch"})],
        baseline={"moe.router": "switch"},
    )
