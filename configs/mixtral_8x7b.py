"""Mixtral 8x7B (Jiang et al. 2024), at full shape.

Every layer is an MoE layer of 8 experts, two for each token, their gates divided by their sum.

               total             active for a token
    published  46.7B             12.9B
    counted    46,702,792,704    12,879,925,248

Both counts are the published ones to the last digit printed. The architecture is that of the released weights: gated
experts (swiglu), 32 query heads on 8 key-value heads of 128 dimensions, rotary base 1e6, an output head of its own. How
it was trained is not public: optimiser, batch, length and balance loss are ours, and so are capacity factor and group
size (the released model drops no token).

Cost: 64 accelerators or a multiple; weights, gradients and AdamW take 16 bytes a parameter, 11.7 GB on each of 64. A
step is a million tokens, four sequences on each of 64. Name your corpus: --config.data.source=...
"""

from moe_jax.config import default_config


def get_config():
    config = default_config()

    config.model.num_layers = 32
    config.model.d_model = 4096
    config.model.d_ff = 14336
    config.model.num_heads = 32
    config.model.num_kv_heads = 8
    config.model.head_dim = 128
    config.model.vocab_size = 32_000
    config.model.activation = "swiglu"
    config.attention.rope_theta = 1e6
    config.model.norm_eps = 1e-5
    config.model.dtype = "bfloat16"
    config.model.remat = "save_exchange"

    config.moe.num_experts = 8
    config.moe.top_k = 2
    config.moe.router = "top_k"
    config.moe.normalize_gates = True
    config.moe.capacity_factor = 1.25
    config.moe.eval_capacity_factor = 2.0
    config.moe.group_size = 4096
    config.moe.balance_loss = 0.01

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
    config.mesh.fsdp = 8
    config.mesh.expert = 8
    return config
