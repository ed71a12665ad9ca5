"""Gemma 4 routing (Google 2026): top-k of the softmax, divided by the sum, times a trained scale of each expert.

Four experts of a quarter of the size each: the FLOPs of `switch_small.py` (the model itself takes 8 of 128). The scales
start at 1.

Cost: as `switch_small.py`.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).parents[1] / "switch_small.py"))["get_config"]()
    config.moe.router = "gemma4"
    config.moe.top_k = 4
    config.moe.d_ff = 16
    config.moe.normalize_gates = True
    return config
