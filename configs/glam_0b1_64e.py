"""GLaM 0.1B/64E (Du et al. 2021, table 4), at full shape.

Everything that is not set here is as in `glam_8b_64e.py`.

               total            active for a token
    published  1.9B             145M
    counted    1,907,608,320    152,292,096

The total is the published one to the last digit printed. The active count is 5.0% above (we allow 6%): it would take a
vocabulary of about 22,500 to meet it, and we keep that of the next sizes. Heads have 64 dimensions here, 768 / 12, not
the 128 of the larger sizes, which would put the active count 25% too high.

Cost: 8 accelerators or a multiple; weights, gradients and optimiser take 8 bytes a parameter, 1.9 GB on each of 8.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("glam_8b_64e.py")))["get_config"]()

    config.model.num_layers = 12
    config.model.d_model = 768
    config.model.d_ff = 3072
    config.model.num_heads = 12
    config.model.num_kv_heads = 12
    config.model.head_dim = 64

    config.mesh.fsdp = 1
    config.mesh.expert = 8
    return config
