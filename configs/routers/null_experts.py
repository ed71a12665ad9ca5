"""Null experts: two more choices that lead nowhere: a token can save an expert (AdaMoE, Zeng et al. 2024).

Two experts of half the size each: the FLOPs of `switch_small.py`. Loads are balanced over all 18: about one choice in
nine is null and costs nothing, so the FLOPs per token are at most those of `mixtral.py`. The gate of a null expert is
lost, the others do not grow by it.

Cost: as `switch_small.py`.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).parents[1] / "switch_small.py"))["get_config"]()
    config.moe.router = "top_k"
    config.moe.top_k = 2
    config.moe.d_ff = 32
    config.moe.normalize_gates = True
    config.moe.null_experts = 2
    return config
