"""DeepSeek-V3 (DeepSeek-AI 2024), and R1, which has its architecture, at full shape.

               total             active for a token
    published  671B              37B
    counted    671,026,404,352   37,552,282,624

The published active count leaves one of the two embeddings out, both counts the layer for multi-token prediction. The
architecture is that of the released weights. How it is trained is in `base.py`, but for what stands here.

Cost: 256 accelerators or a multiple.
"""

import math
import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("base.py")))["get_config"]()

    config.model.num_layers = 61
    config.model.d_model = 7168
    config.model.d_ff = 18_432
    config.model.num_heads = 128
    config.model.num_kv_heads = 128
    config.model.head_dim = 128
    config.model.vocab_size = 129_280
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
    config.attention.scale = (128 + 64) ** -0.5 * (0.1 * math.log(40) + 1) ** 2  # YaRN, mscale_all_dim
    config.attention.rope_interleaved = True

    config.moe.num_experts = 256
    config.moe.top_k = 8
    config.moe.d_ff = 2048
    config.moe.router = "sigmoid"
    config.moe.first_dense = 3
    config.moe.num_shared_experts = 1
    config.moe.routed_scaling = 2.5
    config.moe.normalize_gates = True
    config.moe.expert_groups = 8
    config.moe.top_groups = 4
    config.moe.group_score = "top2"
    config.moe.balance_loss = 0.0001
    config.moe.balance_scope = "sequence"
    config.moe.bias_rate = 0.001

    config.mesh.fsdp = 4
    config.mesh.expert = 64
    return config
