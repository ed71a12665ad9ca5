"""DeepSeek-V2 (DeepSeek-AI 2024), at full shape.

               total             active for a token
    published  236B              21B
    counted    235,741,434,880   21,375,800,320

The architecture is that of the released weights. How it is trained is in `base.py`, but for what stands here.

Cost: 128 accelerators or a multiple.
"""

import math
import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("base.py")))["get_config"]()

    config.model.num_layers = 60
    config.model.d_model = 5120
    config.model.d_ff = 12_288
    config.model.num_heads = 128
    config.model.num_kv_heads = 128
    config.model.head_dim = 128
    config.model.vocab_size = 102_400
    config.model.activation = "swiglu"

    config.attention.rope_scaling = "yarn"
    config.attention.rope_factor = 40.0
    config.attention.rope_original_length = 4096
    config.attention.rope_attention_factor = 1.0
    config.attention.kind = "latent"
    config.attention.query_rank = 1536
    config.attention.kv_rank = 512
    config.attention.rope_dim = 64
    config.attention.value_dim = 128
    config.attention.scale = (128 + 64) ** -0.5 * (0.1 * 0.707 * math.log(40) + 1) ** 2  # YaRN, mscale_all_dim
    config.attention.rope_interleaved = True

    config.moe.num_experts = 160
    config.moe.top_k = 6
    config.moe.d_ff = 1536
    config.moe.router = "top_k"
    config.moe.first_dense = 1
    config.moe.num_shared_experts = 2
    config.moe.routed_scaling = 16.0
    config.moe.expert_groups = 8
    config.moe.top_groups = 3
    config.moe.balance_loss = 0.003
    config.moe.balance_scope = "sequence"

    config.mesh.fsdp = 4
    config.mesh.expert = 32
    return config
