"""Capacity factor in training by capacity factor in evaluation (ST-MoE, table 4: the second one is nearly free).

Cells that differ in evaluation only are trained once: the others take over the checkpoint and evaluate it.

Cost: six trainings of 2 to 3 minutes on a CPU core. ST-MoE, top-1: 0.75/0.75 -1.428, 0.75/2 -1.404, 1.25/2 -1.373.
"""

import runpy
from pathlib import Path

from moe_jax.sweep.derive import fixed_group
from moe_jax.sweep.design import Sweep, grid


def get_config():
    config = runpy.run_path(str(Path(__file__).parents[1] / "switch_small.py"))["get_config"]()
    config.train.steps = 700
    config.eval.every = 0  # curves would be made at the factor of the cell that was trained
    return config


def get_sweep():
    return Sweep(
        grid({"moe.capacity_factor": (0.75, 1.0, 1.25), "moe.eval_capacity_factor": (0.75, 1.0, 1.25, 2.0)}),
        seeds=(0, 1),
        derive=[fixed_group(min_slots=32)],
    )
