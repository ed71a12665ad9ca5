"""Switch-XXL (Fedus et al. 2021, table 9), its decoder at full shape.

               total             active for a token
    published  395B              -
    counted    195,022,229,504   4,768,600,064

The original is an encoder and a decoder of 24 layers each. This is the decoder alone, without cross-attention, and so
with about half of the published parameters; with twice the layers the count is 389.9B. Layers are Switch's own: 64
experts, one for each token, in every block, without which 395B are not reached (the table says every other), positions
are rotary, and groups are a sequence of 512.

Cost: 64 accelerators or a multiple.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("switch_base.py")))["get_config"]()

    config.model.num_layers = 24
    config.model.d_model = 4096
    config.model.d_ff = 10240
    config.model.num_heads = 64
    config.model.num_kv_heads = 64
    config.model.head_dim = 64
    config.model.activation = "geglu"

    config.moe.num_experts = 64
    config.moe.every = 1

    config.mesh.expert = 64
    return config
