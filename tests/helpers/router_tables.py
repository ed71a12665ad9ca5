"""Settings of every router that token by token can be compared with loops, and of those at their edges.

`test_every_router_and_option_has_a_row` in tests/moe/test_routers.py says which router or option has none.
"""

from moe_jax.config import MoEConfig

E = 8  # experts of the rows in LOOPS


def config(router="top_k", top_k=2, **fields) -> MoEConfig:
    return MoEConfig(num_experts=E, router=router, top_k=top_k, **fields)


DEEPSEEK_V2 = dict(expert_groups=4, top_groups=2, routed_scaling=1.6)
DEEPSEEK_V3 = dict(DEEPSEEK_V2, group_score="top2", normalize_gates=True, bias_rate=0.001)
LOOPS = {  # moe, train
    "switch": (config("switch", 1), True),
    "switch, balance bias": (config("switch", 1, bias_rate=0.001), True),
    "gshard, balance bias": (config("gshard", 2, bias_rate=0.001), True),
    "raw": (config(top_k=3, routed_scaling=3.0), True),
    "normalized, trained bias": (config(top_k=3, normalize_gates=True, router_bias=True), True),
    "temperature, trained bias": (
        config(router_bias=True, temperature=2.0, final_temperature=0.5, temperature_steps=41),
        True,
    ),
    "temperature at its end": (config(temperature=2.0, final_temperature=0.5, temperature_steps=11), True),
    "DeepSeek-V2": (config(top_k=3, **DEEPSEEK_V2), True),
    "softmax by two of a group": (config(top_k=3, **DEEPSEEK_V2, group_score="top2"), True),
    "null experts": (config(top_k=3, null_experts=3, normalize_gates=True, bias_rate=0.001), True),
    "sigmoid": (config("sigmoid", 1), True),
    "sigmoid, null experts": (config("sigmoid", 3, null_experts=2), True),
    "DeepSeek-V3": (config("sigmoid", 3, **DEEPSEEK_V3), True),
    "DeepSeek-V3, kept bias": (config("sigmoid", 3, **{**DEEPSEEK_V3, "bias_rate": 0.0, "balance_bias": True}), True),
    "DeepSeek-V3, best of a group": (config("sigmoid", 3, **{**DEEPSEEK_V3, "group_score": "max"}), True),
    "top-p": (config("top_p", 4, top_p=0.5), True),
    "Llama 4": (config("llama4", 1), True),
    "Llama 4, two": (config("llama4", 2), True),
    "Gemma 4": (config("gemma4", 3, normalize_gates=True), True),
    "LongCat": (config("longcat", 3, null_experts=4), True),
    "DeepSeek-V4": (config("sqrt_softplus", 3, normalize_gates=True, routed_scaling=1.5, bias_rate=0.001), True),
    "noise": (config("noisy_top_k", 2), True),
    "noise, all but one": (config("noisy_top_k", E - 1), True),
    "noise, evaluation": (config("noisy_top_k", 3), False),
    "sinkhorn": (config("sinkhorn", 1, sinkhorn_iterations=3), True),
    "sinkhorn, two": (config("sinkhorn", 2, sinkhorn_iterations=1), True),
    "sinkhorn, evaluation": (config("sinkhorn", 2), False),
}

LEARNED = [  # router, K, fields
    ("switch", 1, {}), ("gshard", 2, {}), ("top_k", 3, {"normalize_gates": True, "null_experts": 1}),
    ("top_k", 2, {"expert_groups": 2, "top_groups": 1, "bias_rate": 0.1}), ("sigmoid", 1, {}),
    ("sigmoid", 2, {"normalize_gates": True}), ("noisy_top_k", 2, {}), ("sinkhorn", 2, {}),
    ("top_p", 2, {"top_p": 0.95}), ("gemma4", 2, {}), ("longcat", 2, {"null_experts": 2}),
    ("sqrt_softplus", 2, {"normalize_gates": True}),
]  # fmt: skip
UNLEARNED = [("hash", 2, {}), ("random", 2, {})]

# Routers whose loops are elsewhere, and options of routers that are not a matter of experts and gates.
OTHER_LOOPS = {
    "hash": "test_router_edges.py",
    "random": "test_router_edges.py",
    "expert_choice": "test_expert_choice.py",
    "soft": "test_soft.py",
    "hashed_sqrt_softplus": "test_newer_routings.py",
}
NO_EDGES = {
    "expert_choice": "test_expert_choice.py",
    "soft": "test_soft.py",
    "llama4": "test_newer_routings.py",
    "hashed_sqrt_softplus": "test_newer_routings.py",
}
OTHER_OPTIONS = {
    "jitter": "test_router.py",
    "router_dtype": "test_router_edges.py",
    "second_expert": "test_router.py",
    "second_threshold": "test_router.py",
    "bias_update": "test_balance_bias.py",
    "bias_steps": "test_balance_bias.py",
    "z_loss": "test_balance.py",
    "load_loss": "test_balance_scopes.py",
    "entropy_loss": "test_newer_routings.py",
    "target_experts": "test_newer_routings.py",
    "penalty": "test_registries.py",
    "penalty_loss": "test_registries.py",
}
