"""Switch-Large (Fedus et al. 2021, table 9), its decoder at full shape.

               total             active for a token
    published  26B               -
    counted    13,526,549,504    342,803,456

The original is an encoder and a decoder of 24 layers each. This is the decoder alone, without cross-attention, and so
with about half of the published parameters; with twice the layers the count is 27.0B. Layers are Switch's own: an MoE
layer of 128 experts in every other block, one for each token, positions are rotary, and groups are a sequence of 512.

Cost: 8 accelerators or a multiple.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("switch_base.py")))["get_config"]()

    config.model.num_layers = 24
    config.model.d_model = 1024
    config.model.d_ff = 2816
    config.model.num_heads = 16
    config.model.num_kv_heads = 16
    config.model.head_dim = 64
    config.model.activation = "geglu"

    config.moe.num_experts = 128
    config.moe.every = 2

    config.mesh.expert = 8
    return config
