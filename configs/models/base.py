"""How the full-size models of this folder are trained; it has no model of its own.

Optimiser, batch, length and capacity are ours and not those of the releases, most of which are not public (the released
models drop no token). A step is a million tokens. Name your corpus: --config.data.source=...
"""

from moe_jax.config import default_config


def get_config():
    config = default_config()

    config.model.dtype = "bfloat16"
    config.model.remat = "full"

    config.moe.capacity_factor = 1.25
    config.moe.eval_capacity_factor = 2.0
    config.moe.group_size = 4096

    config.data.tokenizer = "bpe"
    config.data.sequence_length = 4096
    config.data.batch_size = 256

    config.train.steps = 500_000
    config.train.learning_rate = 3e-4
    config.train.warmup_steps = 2_000
    config.train.weight_decay = 0.1

    config.eval.every = 5_000
    config.checkpoint.every = 5_000

    config.mesh.data = -1
    return config
