"""Capacity factor by number of experts: what dropping tokens costs, and what slots cost.

`quickstart.py`'s model on Django 5.1.4's source archive, 700 steps, evaluated at one capacity factor (2) for all cells.
The group is the same for all, large enough for 32 slots an expert in the tightest cell.

Cost: 18 cells of 2 to 4 minutes on a CPU core. Expect drops to fall with the factor and the loss to fall with both.
"""

import runpy
from pathlib import Path

from moe_jax.sweep.derive import fixed_group
from moe_jax.sweep.design import Sweep, grid


def get_config():
    config = runpy.run_path(str(Path(__file__).parents[1] / "switch_small.py"))["get_config"]()
    config.train.steps = 700
    return config


def get_sweep():
    return Sweep(
        grid({"moe.capacity_factor": (0.5, 1.0, 2.0), "moe.num_experts": (4, 16, 64)}),
        seeds=(0, 1),
        derive=[fixed_group(min_slots=32)],
    )
