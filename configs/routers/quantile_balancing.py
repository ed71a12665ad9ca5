"""Quantile balancing (Kimi K3 report, 2026, section 2.3.3): the bias that would have balanced the last batch.

DeepSeek-V3's routing without groups and without a balance loss: sigmoid scores, four experts of a quarter of the size
each, the FLOPs of `switch_small.py`. Every step sets the bias from quantiles of the batch, where `deepseek_v3.py` moves
it by a rate. Expect MaxVio to be low from the first hundred steps on.

Cost: as `switch_small.py`.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).parents[1] / "switch_small.py"))["get_config"]()
    config.moe.router = "sigmoid"
    config.moe.top_k = 4
    config.moe.d_ff = 16
    config.moe.normalize_gates = True
    config.moe.bias_rate = 1.0
    config.moe.bias_update = "quantile"
    config.moe.balance_loss = 0.0
    return config
