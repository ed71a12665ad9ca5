"""GPT-OSS routing (OpenAI 2025): a trained bias on the logits, the softmax over the chosen ones.

Four experts of a quarter of the size each: the FLOPs of `switch_small.py`. Otherwise as `mixtral.py`, with four experts
a token as in the released models.

Cost: as `switch_small.py`.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).parents[1] / "switch_small.py"))["get_config"]()
    config.moe.router = "top_k"
    config.moe.top_k = 4
    config.moe.d_ff = 16
    config.moe.normalize_gates = True
    config.moe.router_bias = True
    return config
