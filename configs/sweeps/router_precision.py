"""A router in bfloat16 against float32 (Switch Transformer, section 2.4 and table 2), inside a float32 model.

Cost: six cells of 1 to 2 minutes on a CPU core. Switch, 32 experts: all in bfloat16 -3.780 (diverged), with a float32
router -1.716, all in float32 -1.718.
"""

import runpy
from pathlib import Path

from moe_jax.sweep.design import Sweep, grid


def get_config():
    config = runpy.run_path(str(Path(__file__).parents[1] / "switch_small.py"))["get_config"]()
    config.train.steps = 250
    return config


def get_sweep():
    points = grid({"moe.router_dtype": ("float32", "bfloat16")})
    return Sweep(points, seeds=(0, 1, 2), baseline={"moe.router_dtype": "float32"})
