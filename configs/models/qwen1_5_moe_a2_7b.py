"""Qwen1.5-MoE-A2.7B (Qwen team 2024), at full shape.

               total             active for a token
    published  14.3B             2.7B
    counted    14,315,784,192    2,689,173,504

The architecture is that of the released weights. How it is trained is in `base.py`, but for what stands here.

Cost: 4 accelerators or a multiple.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("base.py")))["get_config"]()

    config.model.num_layers = 24
    config.model.d_model = 2048
    config.model.d_ff = 5632
    config.model.num_heads = 16
    config.model.num_kv_heads = 16
    config.model.head_dim = 128
    config.model.vocab_size = 151_936
    config.model.activation = "swiglu"

    config.attention.rope_theta = 1000000.0
    config.attention.bias = True

    config.moe.num_experts = 60
    config.moe.top_k = 4
    config.moe.d_ff = 1408
    config.moe.router = "top_k"
    config.moe.num_shared_experts = 1
    config.moe.shared_d_ff = 5632
    config.moe.shared_gate = True
    config.moe.balance_loss = 0.001

    config.mesh.expert = 4
    return config
