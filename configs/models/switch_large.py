"""Switch-Large (Fedus et al. 2021, table 9), its decoder at full shape.

               total             active for a token
    published  26B               -
    counted    13,526,549,504    342,803,456

The original is an encoder and a decoder of 24 layers each. This is the decoder alone, without cross-attention, and so
with about half of the published parameters; two stacks and cross-attention are 27.1B. The difference from 26B is in the
experts: the table says gated ones of 2,816, as here, while two matrices of 4,096, which the checkpoint released later
has, would be 26.3B. Every other layer is an MoE layer of 128 experts, one for each token. Positions are rotary, a group
is a sequence of 512.

Everything that is not set here is as in `switch_base.py`.

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
    return config
