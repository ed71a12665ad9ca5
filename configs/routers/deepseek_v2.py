"""DeepSeek-V2 routing (arXiv 2405.04434, 2024, section 2.2.2): experts from 3 of 8 groups, each counted by its best.

Four experts of a quarter of the size each: the FLOPs of `switch_small.py`. The paper takes 6 of 160 experts and
multiplies the raw gates by 16; with 16 experts the factor is 16 * 16 / 160. A token visits at most 3 groups, whatever
the loads; expect loads a little less even than without the limit.

Cost: as `switch_small.py`.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).parents[1] / "switch_small.py"))["get_config"]()
    config.moe.router = "top_k"
    config.moe.top_k = 4
    config.moe.d_ff = 16
    config.moe.expert_groups = 8
    config.moe.top_groups = 3
    config.moe.routed_scaling = 1.6
    return config
