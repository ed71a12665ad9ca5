"""Noisy top-k gating (Shazeer et al. 2017, equations 3 to 11): trained noise on the logits, importance and load losses.

Two experts of half the size each: the FLOPs of `switch_small.py`. Both losses have the weight of the paper's language
models, 0.1, and replace the balance loss. The second router matrix costs another 2% of the FLOPs. Expect a higher
training loss than held-out loss at first: evaluation has no noise.

Cost: as `switch_small.py`.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).parents[1] / "switch_small.py"))["get_config"]()
    config.moe.router = "noisy_top_k"
    config.moe.top_k = 2
    config.moe.d_ff = 32
    config.moe.balance_loss = 0.0
    config.moe.importance_loss = 0.1
    config.moe.load_loss = 0.1
    return config
