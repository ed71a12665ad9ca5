"""GShard routing (Lepikhin et al. 2020, algorithm 1): the two most probable experts, gates divided by their sum.

Two experts of half the size each: the FLOPs of `switch_small.py`. The second expert is kept with probability min(1, 2 *
gate) in training, so fewer slots are asked for than with `mixtral.py`; evaluation keeps both.

Cost: as `switch_small.py`.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).parents[1] / "switch_small.py"))["get_config"]()
    config.moe.router = "gshard"
    config.moe.top_k = 2
    config.moe.d_ff = 32
    config.moe.second_expert = "random"
    return config
