"""Qwen3-30B-A3B (Yang et al. 2025), at full shape.

               total             active for a token
    published  30.5B             3.3B
    counted    30,532,122,624    3,353,032,704

Everything that is not set here is as in `qwen3_235b_a22b.py`.

The published active count is cut off and not rounded.

Cost: 8 accelerators or a multiple.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("qwen3_235b_a22b.py")))["get_config"]()

    config.model.num_layers = 48
    config.model.d_model = 2048
    config.model.d_ff = 6144
    config.model.num_heads = 32

    config.moe.d_ff = 768

    config.mesh.fsdp = 1
    config.mesh.expert = 8
    return config
