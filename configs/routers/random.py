"""Random routing: each token to an expert drawn uniformly, the floor that any router has to clear.

One expert of size 64 a token. Loads are as even as chance makes them (MaxVio near 0.08 in a batch of 8,192 tokens), and
experts cannot specialise: expect the loss of a model with one expert, trained on a sixteenth of the tokens.

Cost: as `switch_small.py`.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).parents[1] / "switch_small.py"))["get_config"]()
    config.moe.router = "random"
    config.moe.balance_loss = 0.0
    return config
