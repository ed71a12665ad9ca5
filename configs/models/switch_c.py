"""Switch-C (Fedus et al. 2021, table 9), its decoder at full shape.

               total             active for a token
    published  1571B             -
    counted    785,560,087,520   769,764,320

The original is an encoder and a decoder of 15 layers each. This is the decoder alone, without cross-attention, and so
with about half of the published parameters; two stacks and cross-attention are 1,571B. Every layer is an MoE layer of
2,048 experts, one for each token. Positions are rotary, a group is a sequence of 512.

Everything that is not set here is as in `switch_base.py`.

Cost: 32 accelerators or a multiple.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("switch_base.py")))["get_config"]()

    config.model.num_layers = 15
    config.model.d_model = 2080
    config.model.d_ff = 6144
    config.model.num_heads = 32
    config.model.num_kv_heads = 32
    config.model.activation = "relu"

    config.moe.num_experts = 2048
    config.moe.every = 1

    config.mesh.expert = 32
    return config
