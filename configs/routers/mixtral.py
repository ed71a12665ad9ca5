"""Mixtral routing (Jiang et al. 2024, section 2.1): the softmax over the two largest logits.

Two experts of half the size each: the FLOPs of `switch_small.py`. Choosing before the softmax or after it and dividing
by the sum are the same. Gates sum to 1 from the start.

Cost: as `switch_small.py`.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).parents[1] / "switch_small.py"))["get_config"]()
    config.moe.router = "top_k"
    config.moe.top_k = 2
    config.moe.d_ff = 32
    config.moe.normalize_gates = True
    return config
