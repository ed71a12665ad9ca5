"""DeepSeek-V4 routing (DeepSeek-AI 2026): scores sqrt(softplus(logit)), and first layers that go by the token's id.

Four experts of a quarter of the size each: the FLOPs of `switch_small.py`. The first of the two layers takes its
experts from a hash of the token (the model: the first three), the gates still come from the scores. Gates are divided
by their sum and multiplied by 1.5; the bias moves by 0.001 a step, and the sequence-wise balance loss is 1e-4.

Cost: as `switch_small.py`.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).parents[1] / "switch_small.py"))["get_config"]()
    config.moe.router = "sqrt_softplus"
    config.moe.router_by_layer = ("hashed_sqrt_softplus", "sqrt_softplus")
    config.moe.top_k = 4
    config.moe.d_ff = 16
    config.moe.normalize_gates = True
    config.moe.routed_scaling = 1.5
    config.moe.bias_rate = 0.001
    config.moe.balance_scope = "sequence"
    config.moe.balance_loss = 1e-4
    return config
