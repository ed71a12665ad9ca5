"""GLaM 64B/64E (Du et al. 2021, table 4), at full shape: the model that is held against GPT-3.

Everything that is not set here is as in `glam_8b_64e.py`.

               total                active for a token
    published  1.2T                 96.6B
    counted    1,161,756,155,904    96,604,266,496

Both counts are the published ones to the last digit printed (1.2T stands for anything from 1.15T), with the assumptions
of `glam_8b_64e.py`, but a vocabulary of 256,000: with one of 32,000 the active count would be 94.8B.

Cost: 1,024 accelerators, as in the paper, or a multiple; weights, gradients and optimiser take 8 bytes a parameter,
9.1 GB on each of 1,024. One sequence on each device is the paper's million tokens a step; 600,000 steps are its 600B
tokens.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("glam_8b_64e.py")))["get_config"]()

    config.model.num_layers = 64
    config.model.d_model = 8192
    config.model.d_ff = 32768
    config.model.num_heads = 128
    config.model.num_kv_heads = 128
    config.model.vocab_size = 256_000

    config.mesh.fsdp = 16
    return config
