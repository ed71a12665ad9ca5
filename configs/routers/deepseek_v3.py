"""DeepSeek-V3 routing (arXiv 2412.19437, 2024, equations 12 to 20): sigmoid, a balance bias for a balance loss.

Four experts of a quarter of the size each: the FLOPs of `switch_small.py`. Experts come from 4 of 8 groups, a group
counting by its two best (here: all it has). The bias moves by 0.001 a step against the load, and enters the choice
alone; the sequence-wise balance loss is as small as in the paper. Expect MaxVio to fall over the first thousand steps
and to stay low without pulling at the loss.

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
    config.moe.routed_scaling = 2.5
    config.moe.expert_groups = 8
    config.moe.top_groups = 4
    config.moe.group_score = "top2"
    config.moe.bias_rate = 0.001
    config.moe.balance_scope = "sequence"
    config.moe.balance_loss = 0.0001
    return config
