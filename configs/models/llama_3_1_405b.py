"""Llama 3.1 405B (Dubey et al. 2024), the dense baseline, at full shape.

               total             active for a token
    published  405B              405B
    counted    405,853,388,800   405,853,388,800

The architecture is that of the released weights. How it is trained is in `base.py`, but for what stands here.

Cost: 512 accelerators or a multiple.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("base.py")))["get_config"]()

    config.model.num_layers = 126
    config.model.d_model = 16_384
    config.model.d_ff = 53_248
    config.model.num_heads = 128
    config.model.num_kv_heads = 8
    config.model.head_dim = 128
    config.model.vocab_size = 128_256
    config.model.activation = "swiglu"
    config.model.norm_eps = 1e-05

    config.attention.rope_theta = 500000.0
    config.attention.rope_scaling = "llama3"
    config.attention.rope_factor = 8.0
    config.attention.rope_original_length = 8192

    config.mesh.fsdp = 64
    config.mesh.tensor = 8
    return config
