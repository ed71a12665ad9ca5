"""A small Switch Transformer to compare with its dense twin, `dense_small.py`: `make compare` trains both.

The model of `quickstart.py`, trained for 4,000 steps on the source archive of Django 5.1.4: English, code, tests and
translations, bytes as tokens. The version is pinned, so that figures of two machines can be compared. It has 16 times
the feed-forward weights of its twin at 2% more FLOPs per token, which are the router's.

Cost: each step is one of `quickstart.py`; the first run downloads about 11 MB.
"""

from moe_jax.config import default_config


def get_config():
    config = default_config()

    config.model.num_layers = 2
    config.model.d_model = 64
    config.model.d_ff = 64
    config.model.num_heads = 4
    config.model.num_kv_heads = 4

    config.moe.num_experts = 16
    config.moe.capacity_factor = 1.5
    config.moe.group_size = 1024

    config.data.source = "pypi:django==5.1.4"
    config.data.sequence_length = 128
    config.data.batch_size = 64

    config.train.steps = 4_000
    config.train.learning_rate = 3e-3
    config.train.warmup_steps = 100

    config.eval.every = 100
    config.eval.batches = 16
    return config
