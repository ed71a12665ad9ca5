"""Qwen3-235B-A22B (Yang et al. 2025), at full shape.

               total             active for a token
    published  235B              22B
    counted    235,093,634,560   22,190,763,520

The architecture is that of the released weights. How it is trained is in `base.py`, but for what stands here.

Cost: 128 accelerators or a multiple.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("base.py")))["get_config"]()

    config.model.num_layers = 94
    config.model.d_model = 4096
    config.model.d_ff = 12_288
    config.model.num_heads = 64
    config.model.num_kv_heads = 4
    config.model.head_dim = 128
    config.model.vocab_size = 151_936
    config.model.activation = "swiglu"

    config.attention.rope_theta = 1000000.0
    config.attention.qk_norm = "head"

    config.moe.num_experts = 128
    config.moe.top_k = 8
    config.moe.d_ff = 1536
    config.moe.router = "top_k"
    config.moe.normalize_gates = True
    config.moe.balance_loss = 0.001
    config.moe.balance_scope = "global_batch"

    config.mesh.fsdp = 8
    config.mesh.expert = 16
    return config
