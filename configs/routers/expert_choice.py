"""Expert choice (Zhou et al. 2022): each expert takes the tokens it scores highest; two experts a token on average.

Two experts of half the size each: the FLOPs of `switch_small.py`. The paper's capacity factor is K times ours: with
factor 1 every expert takes K * T / E, 128 of a group's 1,024 tokens, all slots are used and none is dropped. Loads are
equal, so there is no balance loss.

Experts choose among a whole group, later tokens included: the loss of this causal model is flattered by what they see,
and generating token by token is another model. A warning says so. Compare it with other routers only with care.

Cost: as `switch_small.py`.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).parents[1] / "switch_small.py"))["get_config"]()
    config.moe.router = "expert_choice"
    config.moe.top_k = 2
    config.moe.d_ff = 32
    config.moe.capacity_factor = 1.0
    config.moe.eval_capacity_factor = 1.0
    config.moe.balance_loss = 0.0
    return config
