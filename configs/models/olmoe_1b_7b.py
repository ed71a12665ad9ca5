"""OLMoE-1B-7B (Muennighoff et al. 2024), at full shape.

               total             active for a token
    published  6.9B              1.3B
    counted    6,919,161,856     1,282,017,280

The architecture is that of the released weights. How it is trained is in `base.py`, but for what stands here.

Cost: 8 accelerators or a multiple.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("base.py")))["get_config"]()

    config.model.num_layers = 16
    config.model.d_model = 2048
    config.model.d_ff = 1024
    config.model.num_heads = 16
    config.model.num_kv_heads = 16
    config.model.head_dim = 128
    config.model.vocab_size = 50_304
    config.model.activation = "swiglu"
    config.model.norm_eps = 1e-05

    config.attention.qk_norm = "projection"

    config.moe.num_experts = 64
    config.moe.top_k = 8
    config.moe.router = "top_k"
    config.moe.z_loss = 0.001

    config.mesh.expert = 8
    return config
