"""Kimi K2 (Moonshot AI 2025), at full shape.

               total             active for a token
    published  1.04T             32.6B
    counted    1,026,408,209,408 32,861,477,888

The architecture is that of the released weights. How it is trained is in `base.py`, but for what stands here.

Cost: 256 accelerators or a multiple.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("base.py")))["get_config"]()

    config.model.num_layers = 61
    config.model.d_model = 7168
    config.model.d_ff = 18_432
    config.model.num_heads = 64
    config.model.num_kv_heads = 64
    config.model.head_dim = 128
    config.model.vocab_size = 163_840
    config.model.activation = "swiglu"

    config.attention.rope_theta = 50000.0
    config.attention.rope_scaling = "yarn"
    config.attention.rope_factor = 32.0
    config.attention.rope_original_length = 4096
    config.attention.rope_beta_fast = 1.0
    config.attention.rope_attention_factor = 1.0
    config.attention.kind = "latent"
    config.attention.query_rank = 1536
    config.attention.kv_rank = 512
    config.attention.rope_dim = 64
    config.attention.value_dim = 128
    config.attention.scale = 0.13086079996295005
    config.attention.rope_interleaved = True

    config.moe.num_experts = 384
    config.moe.top_k = 8
    config.moe.d_ff = 2048
    config.moe.router = "sigmoid"
    config.moe.first_dense = 1
    config.moe.num_shared_experts = 1
    config.moe.routed_scaling = 2.827
    config.moe.normalize_gates = True
    config.moe.balance_loss = 0.0001
    config.moe.balance_scope = "sequence"
    config.moe.bias_rate = 0.001

    config.mesh.fsdp = 4
    config.mesh.expert = 64
    return config
