"""Small random models of Hugging Face's, of every family, and their logits in float64. Needs torch and transformers."""

import contextlib

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

BASE = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
LATENT = {
    "q_lora_rank": 12, "kv_lora_rank": 20, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6,
    "num_key_value_heads": 4,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 16}
DEEPSEEK_YARN = YARN | {"mscale": 1.0, "mscale_all_dim": 0.8, "beta_fast": 32, "beta_slow": 1}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 8}
ROUTED = EXPERTS | {"n_routed_experts": 8, "n_shared_experts": 2, "first_k_dense_replace": 1}
# What each family's fixture has beside `BASE`: the oddities of the family, all at once.
FAMILIES = {
    "llama": {"rope_parameters": LLAMA3, "head_dim": 6},
    "mixtral": {"num_local_experts": 6, "num_experts_per_tok": 3, "sliding_window": 7},
    "olmoe": {"num_experts": 6, "num_experts_per_tok": 3},
    "flex_olmo": {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True},
    "qwen2_moe": EXPERTS | {"num_experts": 6, "shared_expert_intermediate_size": 16},
    "qwen3_moe": EXPERTS
    | {"num_experts": 6, "head_dim": 8, "norm_topk_prob": True, "mlp_only_layers": [0], "tie_word_embeddings": True},
    "deepseek_v2": ROUTED
    | LATENT
    | {
        "n_group": 4, "topk_group": 2, "topk_method": "group_limited_greedy", "routed_scaling_factor": 4.0,
        "rope_parameters": DEEPSEEK_YARN,
    },
    "deepseek_v3": ROUTED | LATENT | {"n_group": 4, "topk_group": 2, "rope_parameters": DEEPSEEK_YARN},
    "gpt_oss": {
        "num_local_experts": 6, "num_experts_per_tok": 3, "head_dim": 8, "sliding_window": 5,
        "rope_parameters": YARN | {"truncate": False, "rope_theta": 150.0},
    },
    "glm4_moe": ROUTED
    | {"head_dim": 8, "use_qk_norm": True, "attention_bias": True, "routed_scaling_factor": 2.5},
    "minimax_m2": {"num_local_experts": 6, "num_experts_per_tok": 3, "head_dim": 8, "rotary_dim": 4},
    "ernie4_5_moe": {
        "moe_num_experts": 6, "moe_k": 3, "moe_intermediate_size": 8, "moe_layer_start_index": 1,
        "moe_layer_end_index": 2,
    },
    "dots1": ROUTED
    | {
        "norm_topk_prob": True, "routed_scaling_factor": 2.5, "sliding_window": 6,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
    },
    "granitemoe": {
        "num_local_experts": 4, "num_experts_per_tok": 2, "embedding_multiplier": 3.0, "residual_multiplier": 0.4,
        "attention_multiplier": 0.3, "logits_scaling": 2.0, "tie_word_embeddings": True,
    },
}  # fmt: skip


def make_model(family, seed=0, **fields):
    """A random model. Everything is drawn, also what is usually zero or one at first: biases, norms, sinks."""
    config = AutoConfig.for_model(family, **{**BASE, **FAMILIES[family], **fields})
    config._attn_implementation = config._experts_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(seed)
    named = dict(model.named_parameters())
    named |= {name: buffer for name, buffer in model.named_buffers() if "correction_bias" in name}
    with torch.no_grad():
        for name, value in named.items():
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float32)
            fan_in = value.shape[-1] if value.ndim > 1 else 1
            value.copy_(1 + 0.3 * noise if "norm" in name else noise * (0.3 if value.ndim < 2 else fan_in**-0.5))
    return model


def float64_twin(model):
    """A copy in float64; call it under `in_float64`."""
    twin = type(model)(model.config).eval().double()
    state = {name: value.double() for name, value in model.state_dict().items()}
    twin.load_state_dict(state, strict=True)
    for (name, buffer), (_, own) in zip(twin.named_buffers(), model.named_buffers(), strict=True):
        if "correction_bias" in name:
            buffer.copy_(own.double())
    return twin


def float64_logits(model, ids):
    """Logits of tokens [B, L] by the model's own code in float64: also where it asks for float32."""
    with in_float64(), torch.no_grad():
        return float64_twin(model)(torch.as_tensor(np.asarray(ids))).logits.numpy()


def float64_choices(model, ids):
    """What experts each MoE layer sends the tokens [B, L] to: sorted, as [B * L, K]."""
    chosen = []
    with in_float64(), torch.no_grad():
        twin = float64_twin(model)
        for name, module in twin.named_modules():
            if name.endswith(".experts"):
                module.register_forward_pre_hook(lambda _, arguments: chosen.append(arguments[1]))
        twin(torch.as_tensor(np.asarray(ids)))
    return [np.sort(experts.reshape(ids.size, -1).numpy(), axis=-1) for experts in chosen]


def save_gradients(model, ids, targets, folder):
    """Writes gradients of the summed cross-entropy of `targets` [B, L], in float64, as a checkpoint of the model."""
    with in_float64():
        with torch.no_grad():
            twin = float64_twin(model)
        logits = twin(torch.as_tensor(ids)).logits.flatten(0, 1)
        torch.nn.functional.cross_entropy(logits, torch.as_tensor(targets).flatten(), reduction="sum").backward()
        with torch.no_grad():
            for value in twin.parameters():
                value.copy_(value.grad)
        twin.save_pretrained(folder)


@contextlib.contextmanager
def in_float64():
    """Hugging Face's code computes norms, routers and rotary angles in float32: here what it calls so is float64."""
    names = {"float32": torch.float32, "float": torch.float}
    cast, default = torch.Tensor.float, torch.get_default_dtype()
    try:
        for name in names:
            setattr(torch, name, torch.float64)
        torch.Tensor.float = torch.Tensor.double
        torch.set_default_dtype(torch.float64)
        yield
    finally:
        for name, value in names.items():
            setattr(torch, name, value)
        torch.Tensor.float = cast
        torch.set_default_dtype(default)
