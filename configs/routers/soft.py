"""Soft MoE (Puigcerver et al. 2023): slots are weighted means of all tokens, tokens weighted means of all slots.

Groups of one sequence, 128 tokens, are mixed into 16 experts of 2 slots each: with the products that mix, the FLOPs of
`switch_small.py`. Nothing is dropped and nothing to balance.

Every token is mixed with all of its group, later ones included: the loss of this causal model is flattered by what it
sees (it can fall below any causal model's), and generating token by token is another model. A warning says so. The
paper is about images.

Cost: as `switch_small.py`.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).parents[1] / "switch_small.py"))["get_config"]()
    config.moe.router = "soft"
    config.moe.top_k = 1
    config.moe.group_size = 128
    config.moe.capacity_factor = 0.25
    config.moe.eval_capacity_factor = 0.25
    config.moe.balance_loss = 0.0
    return config
