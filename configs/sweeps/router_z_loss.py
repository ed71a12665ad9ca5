"""Router z-loss at ten times the usual learning rate: does it keep training stable (ST-MoE, section 3.3)?

Cost: six cells of 2 minutes on a CPU core. ST-MoE: 3 of 3 runs stable with it, 4 of 6 without.
"""

import runpy
from pathlib import Path

from moe_jax.sweep.design import Sweep, grid


def get_config():
    config = runpy.run_path(str(Path(__file__).parents[1] / "switch_small.py"))["get_config"]()
    config.train.steps = 400
    config.train.learning_rate = 0.03
    return config


def get_sweep():
    return Sweep(grid({"moe.z_loss": (0.0, 0.001)}), seeds=(0, 1, 2), baseline={"moe.z_loss": 0.0})
