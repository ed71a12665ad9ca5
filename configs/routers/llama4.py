"""Llama 4 routing (Meta 2025): the sigmoid of the best logit multiplies what the expert reads.

One expert a token, as in `switch_small.py`, whose gate is a softmax probability and multiplies what the expert writes.
Where the gate multiplies makes no difference to ReLU experts, which these are; to gated ones it does.

Cost: as `switch_small.py`.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).parents[1] / "switch_small.py"))["get_config"]()
    config.moe.router = "llama4"
    config.moe.top_k = 1
    return config
