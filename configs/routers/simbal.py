"""SimBal (Omi et al. 2025, arXiv 2506.14038): balance by a router with orthonormal columns, not by counting loads.

The loss looks at the router's weights alone, so similar tokens stay together. Two experts of half the size each: the
FLOPs of `switch_small.py`. The weight of the loss is ours. Expect loads to be less equal than with the balance loss.

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
    config.moe.balance_loss = 0.0
    config.moe.penalty = "simbal"
    config.moe.penalty_loss = 0.01
    return config
