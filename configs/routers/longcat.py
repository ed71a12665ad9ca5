"""LongCat-Flash routing (Meituan 2025, arXiv 2509.01322): some choices return the token itself.

Four choices among 16 experts of a quarter of the size and 8 identity experts. The bias holds the experts that a token
visits at three on average, so the FLOPs are below those of `switch_small.py`, which count all four;
`moe/experts_per_token` shows it.

Cost: as `switch_small.py`.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).parents[1] / "switch_small.py"))["get_config"]()
    config.moe.router = "longcat"
    config.moe.top_k = 4
    config.moe.d_ff = 16
    config.moe.null_experts = 8
    config.moe.bias_rate = 0.05
    config.moe.bias_update = "longcat"
    config.moe.target_experts = 3.0
    config.moe.balance_loss = 0.0
    return config
