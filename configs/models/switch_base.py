"""Switch-Base (Fedus et al. 2021, table 9), its decoder at full shape.

               total             active for a token
    published  7B                -
    counted    3,705,785,088     110,217,984

The original is an encoder and a decoder of 12 layers each. This is the decoder alone, without cross-attention, and so
with about half of the published parameters; two stacks and cross-attention are 7.4B. Every other layer is an MoE layer
of 128 experts, one for each token. Feed-forwards are gated, as the table says (the checkpoint released later has as
many parameters in two matrices of 3,072). Positions are rotary, a group is a sequence of 512.

Cost: 8 accelerators or a multiple.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("base.py")))["get_config"]()

    config.model.vocab_size = 32_128
    config.model.tie_embeddings = True
    config.model.num_layers = 12
    config.model.d_model = 768
    config.model.d_ff = 2048
    config.model.num_heads = 12
    config.model.num_kv_heads = 12
    config.model.head_dim = 64
    config.model.activation = "geglu"

    config.moe.num_experts = 128
    config.moe.every = 2
    config.moe.top_k = 1
    config.moe.router = "switch"
    config.moe.group_size = 512
    config.moe.balance_loss = 0.01

    config.data.sequence_length = 512
    config.data.batch_size = 2048

    config.mesh.expert = 8
    return config
