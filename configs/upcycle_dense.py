"""A small dense model that `upcycle_moe.py` goes on from (docs/models.md, Upcycling).

Two layers of width 64 with gated feed-forward networks of 256, on the source archive of Django 5.1.4, bytes as tokens.
The rate is constant, so that the run can be made longer: an upcycled model competes with 1,000 steps instead of 500.

Cost: 500 steps of 8,192 tokens, about 3 minutes on one core.
"""

from moe_jax.config import default_config


def get_config():
    config = default_config()

    config.model.num_layers = 2
    config.model.d_model = 64
    config.model.d_ff = 256
    config.model.activation = "swiglu"

    config.data.source = "pypi:django==5.1.4"

    config.train.steps = 500
    config.train.schedule = "constant"
    config.train.learning_rate = 2e-3
    config.train.warmup_steps = 50

    config.eval.every = 100
    config.eval.batches = 32
    return config
