"""OLMoE routing (Muennighoff et al. 2024): the most probable experts, gates raw, balance loss and z-loss.

Two experts of half the size each: the FLOPs of `switch_small.py`. Gates start near 1/16 each, so that the layer says
little at first; the z-loss keeps logits small.

Cost: as `switch_small.py`.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).parents[1] / "switch_small.py"))["get_config"]()
    config.moe.router = "top_k"
    config.moe.top_k = 2
    config.moe.d_ff = 32
    config.moe.z_loss = 0.001
    return config
