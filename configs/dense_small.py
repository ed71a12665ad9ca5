"""The dense twin of `switch_small.py`: the same run in every field but one, `moe.num_experts`.

It has the same FLOPs per token but for the router's, and is what the Switch Transformer's gain is measured against:
steps and seconds to this model's final held-out loss (`make compare`).
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("switch_small.py")))["get_config"]()
    config.moe.num_experts = 0
    return config
