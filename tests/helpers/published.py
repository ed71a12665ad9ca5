"""What config.json of released models says, by the file of `configs/models/` that has the same model."""

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}  # fmt: skip
COMMON = {"hidden_act": "silu", "attention_bias": False, "attention_dropout": 0.0, "tie_word_embeddings": False}
LATENT = {"q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
YARN = {"type": "yarn", "original_max_position_embeddings": 4096}
BETAS = {"beta_fast": 32, "beta_slow": 1}
NOAUX = {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "norm_topk_prob": True, "moe_layer_freq": 1}


def sizes(width, inner, layers, heads, kv_heads, vocabulary, eps):
    return {
        "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "vocab_size": vocabulary, "rms_norm_eps": eps,
    }  # fmt: skip


def qwen3_moe(width, inner, layers, heads, expert):
    return COMMON | sizes(width, inner, layers, heads, 4, 151936, 1e-6) | {
        "model_type": "qwen3_moe", "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
        "moe_intermediate_size": expert, "norm_topk_prob": True, "rope_theta": 1e6, "decoder_sparse_step": 1,
        "mlp_only_layers": [], "sliding_window": None, "use_sliding_window": False,
    }  # fmt: skip


def gpt_oss(layers, experts):
    return sizes(2880, 2880, layers, 64, 8, 201088, 1e-5) | {
        "model_type": "gpt_oss", "hidden_act": "silu", "attention_bias": True, "head_dim": 64, "sliding_window": 128,
        "num_local_experts": experts, "num_experts_per_tok": 4, "rope_theta": 150000.0, "swiglu_limit": 7.0,
        "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096,
                         "truncate": False} | BETAS,
        "layer_types": ["sliding_attention", "full_attention"] * (layers // 2), "tie_word_embeddings": False,
    }  # fmt: skip


PUBLISHED = {
    "llama_3_1_405b": COMMON | sizes(16384, 53248, 126, 128, 8, 128256, 1e-5) | {
        "model_type": "llama", "rope_theta": 5e5, "rope_scaling": LLAMA3, "mlp_bias": False,
    },
    "mixtral_8x7b": COMMON | sizes(4096, 14336, 32, 32, 8, 32000, 1e-5) | {
        "model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2, "rope_theta": 1e6,
        "sliding_window": None,
    },
    "mixtral_8x22b": COMMON | sizes(6144, 16384, 56, 48, 8, 32000, 1e-5) | {
        "model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2, "rope_theta": 1e6,
        "sliding_window": None,
    },
    "olmoe_1b_7b": COMMON | sizes(2048, 1024, 16, 16, 16, 50304, 1e-5) | {
        "model_type": "olmoe", "num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": False,
        "rope_theta": 10000.0, "clip_qkv": None,
    },
    "qwen1_5_moe_a2_7b": COMMON | sizes(2048, 5632, 24, 16, 16, 151936, 1e-6) | {
        "model_type": "qwen2_moe", "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632,
        "num_experts": 60, "num_experts_per_tok": 4, "norm_topk_prob": False, "decoder_sparse_step": 1,
        "rope_theta": 1e6, "use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 21,
    },
    "qwen3_30b_a3b": qwen3_moe(2048, 6144, 48, 32, 768),
    "qwen3_235b_a22b": qwen3_moe(4096, 12288, 94, 64, 1536),
    "deepseek_v2": COMMON | LATENT | sizes(5120, 12288, 60, 128, 128, 102400, 1e-6) | {
        "model_type": "deepseek_v2", "moe_intermediate_size": 1536, "n_routed_experts": 160, "n_shared_experts": 2,
        "num_experts_per_tok": 6, "n_group": 8, "topk_group": 3, "topk_method": "group_limited_greedy",
        "scoring_func": "softmax", "norm_topk_prob": False, "routed_scaling_factor": 16.0, "first_k_dense_replace": 1,
        "moe_layer_freq": 1, "rope_theta": 10000,
        "rope_scaling": YARN | BETAS | {"factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707},
    },
    "deepseek_v3": COMMON | LATENT | NOAUX | sizes(7168, 18432, 61, 128, 128, 129280, 1e-6) | {
        "model_type": "deepseek_v3", "moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": 1,
        "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5,
        "first_k_dense_replace": 3, "rope_theta": 10000,
        "rope_scaling": YARN | BETAS | {"factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0},
    },
    "kimi_k2": COMMON | LATENT | NOAUX | sizes(7168, 18432, 61, 64, 64, 163840, 1e-6) | {
        "model_type": "kimi_k2", "moe_intermediate_size": 2048, "n_routed_experts": 384, "n_shared_experts": 1,
        "num_experts_per_tok": 8, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.827,
        "first_k_dense_replace": 1, "rope_theta": 50000.0,
        "rope_scaling": YARN | {"factor": 32.0, "mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 1.0,
                                "beta_slow": 1.0},
    },
    "gpt_oss_20b": gpt_oss(24, 32),
    "gpt_oss_120b": gpt_oss(36, 128),
}  # fmt: skip
