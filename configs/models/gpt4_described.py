"""A model of GPT-4's shape as accounts outside of OpenAI describe it (SemiAnalysis 2023); nothing of it is confirmed.

               total             active for a token
    published  1.8T              280B
    counted    1,833,372,387,840 279,634,414,080

They speak of 120 layers, 16 experts of about 111B parameters each, two for each token, 55B shared for attention, 1.8T
in all and 280B for a token. Width and hidden size are what these figures come to with a hidden layer of four times the
width, plain gelu experts and as many key-value heads as query heads.

Cost: 256 accelerators or a multiple.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("base.py")))["get_config"]()

    config.model.num_layers = 120
    config.model.d_model = 10_752
    config.model.d_ff = 43_008
    config.model.num_heads = 84
    config.model.num_kv_heads = 84
    config.model.head_dim = 128
    config.model.vocab_size = 100_352
    config.model.activation = "gelu"

    config.moe.num_experts = 16
    config.moe.top_k = 2
    config.moe.router = "top_k"
    config.moe.normalize_gates = True

    config.mesh.fsdp = 16
    config.mesh.expert = 16
    return config
