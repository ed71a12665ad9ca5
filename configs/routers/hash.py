"""Hash layers (Roller et al. 2021, section 3.1): a token's expert is a fixed random function of its vocabulary index.

One expert of size 64 a token. A control: nothing is learned, and the router costs nothing. With bytes as tokens the
loads are as uneven as the bytes' frequencies: expect many drops, which no loss can mend.

Cost: as `switch_small.py`.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).parents[1] / "switch_small.py"))["get_config"]()
    config.moe.router = "hash"
    config.moe.balance_loss = 0.0
    return config
