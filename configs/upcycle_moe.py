"""Eight experts, two for each token, that begin as the networks of `upcycle_dense.py` (docs/models.md, Upcycling).

A token costs 1.55 times the dense model's FLOPs: 323 steps are as much as 500 of that.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("upcycle_dense.py")))["get_config"]()

    config.moe.num_experts = 8
    config.moe.top_k = 2
    config.moe.router = "top_k"
    config.moe.normalize_gates = True
    config.moe.group_size = 1024

    config.train.steps = 323
    return config
