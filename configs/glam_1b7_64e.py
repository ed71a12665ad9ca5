"""GLaM 1.7B/64E (Du et al. 2021, table 4), at full shape.

Everything that is not set here is as in `glam_8b_64e.py`.

               total             active for a token
    published  27B               1.879B
    counted    26,843,645,952    1,879,148,544

Both counts are the published ones to the last digit printed, with the assumptions of `glam_8b_64e.py`.

Cost: 64 accelerators or a multiple; weights, gradients and optimiser take 8 bytes a parameter, 3.4 GB on each of 64.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("glam_8b_64e.py")))["get_config"]()

    config.model.num_layers = 24
    config.model.d_model = 2048
    config.model.d_ff = 8192
    config.model.num_heads = 16
    config.model.num_kv_heads = 16

    config.mesh.fsdp = 1
    return config
