"""Balancing: the auxiliary loss against the loss-free bias, and against nothing (Wang et al. 2024).

Sigmoid scores, the best 2 of 16 experts of half the width, equal FLOPs per token. MaxVio is that of the last
`log.every` steps together.

Cost: twelve cells of 5 minutes on a CPU core. The paper, 1B parameters: MaxVio 0.72 with a loss of weight 0.001, 0.04
with the bias, perplexity 9.56 and 9.50.
"""

import runpy
from pathlib import Path

from moe_jax.sweep.design import Sweep


def get_config():
    config = runpy.run_path(str(Path(__file__).parents[1] / "switch_small.py"))["get_config"]()
    config.moe.router = "sigmoid"
    config.moe.normalize_gates = True
    config.moe.top_k = 2
    config.moe.d_ff = config.model.d_ff // 2
    config.train.steps = 1_000
    return config


def get_sweep():
    return Sweep(
        [
            {"moe.balance_loss": 0.001, "moe.bias_rate": 0.0},
            {"moe.balance_loss": 0.01, "moe.bias_rate": 0.0},
            {"moe.balance_loss": 0.0, "moe.bias_rate": 0.001},
            {"moe.balance_loss": 0.0, "moe.bias_rate": 0.0},
        ],
        seeds=(0, 1, 2),
        baseline={"moe.balance_loss": 0.001},
    )
