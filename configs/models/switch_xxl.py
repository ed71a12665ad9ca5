"""Switch-XXL (Fedus et al. 2021, table 9), its decoder at full shape.

               total             active for a token
    published  395B              -
    counted    196,663,775,232   4,900,196,352

The original is an encoder and a decoder of 24 layers each. This is the decoder alone, without cross-attention, and so
with about half of the published parameters; two stacks and cross-attention are 394.7B. Every other layer is an MoE
layer of 128 experts, one for each token, and the output head is a matrix of its own, both as in the checkpoint released
later; the table says 64 experts, with which two stacks would be 201B. Positions are rotary, a group is a sequence of
512.

Everything that is not set here is as in `switch_base.py`.

Cost: 64 accelerators or a multiple.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("switch_base.py")))["get_config"]()

    config.model.tie_embeddings = False
    config.model.num_layers = 24
    config.model.d_model = 4096
    config.model.d_ff = 10240
    config.model.num_heads = 64
    config.model.num_kv_heads = 64

    config.mesh.expert = 64
    return config
