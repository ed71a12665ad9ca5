"""Top-p routing (Huang et al. 2024, arXiv 2403.07652): the fewest experts whose probabilities add up to 0.4.

At most two experts of half the size each: the FLOPs of `switch_small.py` are the most that a token can take, and
`moe/experts_per_token` says what it takes. The weights of the entropy loss and the balance loss are the paper's (1e-4,
1e-2). Expect early layers, and tokens that are hard to route, to take two.

Cost: as `switch_small.py`.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).parents[1] / "switch_small.py"))["get_config"]()
    config.moe.router = "top_p"
    config.moe.top_k = 2
    config.moe.d_ff = 32
    config.moe.top_p = 0.4
    config.moe.entropy_loss = 1e-4
    config.moe.balance_loss = 1e-2
    return config
