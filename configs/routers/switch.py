"""Switch routing (Fedus et al. 2021, equations 1 and 2): the most probable expert, its raw probability as gate.

One expert of size 64 a token: the FLOPs of `switch_small.py`. This is `switch_small.py` by another name: the one that
the other files of this folder are compared with. Expect few drops (capacity factor 1.5) once the balance loss has done
its work, within the first hundreds of steps.

Cost: as `switch_small.py`.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).parents[1] / "switch_small.py"))["get_config"]()
    config.moe.router = "switch"
    return config
