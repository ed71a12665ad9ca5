"""GPT-OSS 20B (OpenAI 2025), at full shape.

               total             active for a token
    published  20.9B             3.6B
    counted    20,914,757,184    4,187,440,704

The published active count leaves one of the two embeddings out. Everything that is not set here is as in
`gpt_oss_120b.py`.

Cost: 8 accelerators or a multiple.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("gpt_oss_120b.py")))["get_config"]()

    config.model.num_layers = 24

    config.moe.num_experts = 32

    config.mesh.fsdp = 1
    config.mesh.expert = 8
    return config
