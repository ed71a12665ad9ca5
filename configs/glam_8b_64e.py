"""GLaM 8B/64E (Du et al. 2021, table 4), at full shape. The files of the other three sizes start from this one.

Every other layer is an MoE layer of 64 experts, two for each token.

               total              active for a token
    published  143B               9.8B
    counted    142,943,195,136    9,799,208,960

Both counts are the published ones to the last digit printed, with these assumptions: dense feed-forwards are gated
(geglu, three matrices) and experts are not (gelu, two); heads have 128 dimensions; the vocabulary has 32,000 entries;
the output head is the transposed embedding. Different from the paper: rotary positions instead of relative biases (too
few to show in the counts), and a linear warm-up to the peak learning rate instead of the peak from the start. Capacity
factor and group size are ours.

Cost: 256 accelerators or a multiple; weights, gradients and optimiser take 8 bytes a parameter, 4.5 GB on each of 256.
A step is the paper's million tokens. The corpus of the paper is not public: name yours, --config.data.source=...
"""

from moe_jax.config import default_config


def get_config():
    config = default_config()

    config.model.num_layers = 32
    config.model.d_model = 4096
    config.model.d_ff = 16384
    config.model.num_heads = 32
    config.model.num_kv_heads = 32
    config.model.head_dim = 128
    config.model.vocab_size = 32_000
    config.model.activation = "geglu"
    config.model.tie_embeddings = True
    config.model.dtype = "bfloat16"
    config.model.remat = "save_exchange"

    config.moe.num_experts = 64
    config.moe.top_k = 2
    config.moe.every = 2
    config.moe.activation = "gelu"
    config.moe.router = "gshard"
    config.moe.capacity_factor = 1.25
    config.moe.eval_capacity_factor = 2.0
    config.moe.group_size = 1024
    config.moe.balance_loss = 0.01

    config.data.tokenizer = "bpe"
    config.data.sequence_length = 1024
    config.data.batch_size = 1024

    config.train.steps = 600_000
    config.train.optimizer = "adafactor"
    config.train.learning_rate = 0.01
    config.train.schedule = "rsqrt"
    config.train.warmup_steps = 10_000

    config.eval.every = 5_000
    config.checkpoint.every = 5_000

    config.mesh.data = -1
    config.mesh.fsdp = 4
    config.mesh.expert = 64
    return config
