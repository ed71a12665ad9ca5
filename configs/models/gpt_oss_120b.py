"""GPT-OSS 120B (OpenAI 2025), at full shape.

               total             active for a token
    published  116.8B            5.1B
    counted    116,829,156,672   5,711,982,912

The published active count leaves one of the two embeddings out. The architecture is that of the released weights. How
it is trained is in `base.py`, but for what stands here.

Cost: 64 accelerators or a multiple.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("base.py")))["get_config"]()

    config.model.num_layers = 36
    config.model.d_model = 2880
    config.model.d_ff = 2880
    config.model.num_heads = 64
    config.model.num_kv_heads = 8
    config.model.head_dim = 64
    config.model.vocab_size = 201_088
    config.model.activation = "swiglu"
    config.model.norm_eps = 1e-05

    config.attention.rope_theta = 150000.0
    config.attention.rope_scaling = "yarn"
    config.attention.rope_factor = 32.0
    config.attention.rope_original_length = 4096
    config.attention.rope_truncate = False
    config.attention.windows = (128, 0)
    config.attention.bias = True
    config.attention.out_bias = True
    config.attention.sinks = True

    config.moe.num_experts = 128
    config.moe.top_k = 4
    config.moe.activation = "clamped_swiglu"
    config.moe.router = "top_k"
    config.moe.normalize_gates = True
    config.moe.router_bias = True
    config.moe.expert_bias = True

    config.mesh.fsdp = 4
    config.mesh.expert = 16
    return config
