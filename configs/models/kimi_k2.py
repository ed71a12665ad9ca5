"""Kimi K2 (Moonshot AI 2025), at full shape.

               total             active for a token
    published  1.04T             32.6B
    counted    1,026,408,209,408 32,861,477,888

DeepSeek-V3 with half of the heads, more experts and no expert groups. The published total is that of 61 MoE layers, of
which the released model has 60 behind a dense one: with `moe.first_dense=0` the count is 1,043.0B. Of the published
active count we do not know what it leaves out. Everything that is not set here is as in `deepseek_v3.py`.

Cost: 256 accelerators or a multiple.
"""

import math
import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("deepseek_v3.py")))["get_config"]()

    config.model.num_heads = 64
    config.model.num_kv_heads = 64
    config.model.vocab_size = 163_840

    config.attention.rope_theta = 50_000.0
    config.attention.rope_factor = 32.0
    config.attention.rope_beta_fast = 1.0
    config.attention.scale = (128 + 64) ** -0.5 * (0.1 * math.log(32) + 1) ** 2  # YaRN, mscale_all_dim

    config.moe.num_experts = 384
    config.moe.first_dense = 1
    config.moe.routed_scaling = 2.827
    config.moe.expert_groups = 1
    config.moe.top_groups = 0
    config.moe.group_score = "max"
    return config
