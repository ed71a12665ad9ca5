"""More experts at the same FLOPs per token, against the dense model: Switch Transformer's first claim, small.

All cells have the FLOPs per token of 64 experts of hidden size 64; the router's are part of them, so that fewer experts
(and the dense model, `moe.num_experts=0`) get a wider feed-forward. The model is limited by its feed-forward, which is
where experts help. The report gives steps, FLOPs and time to the dense model's held-out loss.

Cost: 24 cells of 3 to 5 minutes on a CPU core; `--config.train.steps=4000` shows a larger gap.
"""

import runpy
from pathlib import Path

from moe_jax.sweep.derive import equal_flops, fixed_group
from moe_jax.sweep.design import Sweep, grid


def get_config():
    config = runpy.run_path(str(Path(__file__).parents[1] / "switch_small.py"))["get_config"]()
    config.train.steps = 1_000
    config.eval.every = 50
    return config


def get_sweep():
    return Sweep(
        grid({"moe.num_experts": (0, 1, 2, 4, 8, 16, 32, 64)}),
        seeds=(0, 1, 2),
        derive=[fixed_group(min_slots=32), equal_flops(to={"moe.num_experts": 64})],
        baseline={"moe.num_experts": 0},
    )
