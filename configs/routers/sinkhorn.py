"""S-BASE routing (Clark et al. 2022): in training experts are chosen after Sinkhorn scaling to equal loads.

One expert of size 64 a token: the FLOPs of `switch_small.py`. No balance loss: loads are nearly equal from the first
step on. Training looks ahead within a group of tokens, which evaluation does not: expect held-out drops and loss to
suffer where the router itself is not balanced.

Cost: as `switch_small.py`.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).parents[1] / "switch_small.py"))["get_config"]()
    config.moe.router = "sinkhorn"
    config.moe.balance_loss = 0.0
    return config
