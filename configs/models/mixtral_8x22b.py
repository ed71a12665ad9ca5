"""Mixtral 8x22B (Mistral AI 2024), at full shape.

               total             active for a token
    published  141B              39B
    counted    140,620,634,112   39,152,031,744

The architecture is that of the released weights. How it is trained is in `base.py`, but for what stands here.

Cost: 64 accelerators or a multiple.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("base.py")))["get_config"]()

    config.model.num_layers = 56
    config.model.d_model = 6144
    config.model.d_ff = 16_384
    config.model.num_heads = 48
    config.model.num_kv_heads = 8
    config.model.head_dim = 128
    config.model.vocab_size = 32_000
    config.model.activation = "swiglu"
    config.model.norm_eps = 1e-05

    config.attention.rope_theta = 1000000.0

    config.moe.num_experts = 8
    config.moe.top_k = 2
    config.moe.router = "top_k"
    config.moe.normalize_gates = True

    config.mesh.fsdp = 8
    config.mesh.expert = 8
    return config
