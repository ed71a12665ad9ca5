"""What a router costs: the whole layer's forward and backward pass over the same layer's with plain top-k routing."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from moe_jax.analysis.layer_benchmark import whole_layer
from moe_jax.analysis.timing import median_ratio, paired_times
from moe_jax.config.schema import MoEConfig
from moe_jax.models.decoder import fan_in_init
from moe_jax.moe.layer import MoELayer
from moe_jax.moe.router import TokenInfo

D_MODEL, D_FF, TOKENS, VOCABULARY = 256, 1024, 4096, 1024
SHAPES = ((8, 2), (64, 2))  # E, K
REFERENCE = "top_k"
ROUTINGS: dict[str, dict[str, Any]] = {
    REFERENCE: {"router": "top_k", "normalize_gates": True},
    "gshard": {"router": "gshard"},
    "sigmoid, groups, bias": {
        **{"router": "sigmoid", "normalize_gates": True, "bias_rate": 0.001},
        **{"expert_groups": 4, "top_groups": 2, "group_score": "top2"},
    },
    "noisy_top_k": {"router": "noisy_top_k"},
    "sinkhorn": {"router": "sinkhorn"},
    "null experts": {"router": "top_k", "null_experts": 2},
    "hash": {"router": "hash"},
    "random": {"router": "random"},
    "expert_choice": {"router": "expert_choice"},
}


def run(repeats: int) -> list[dict[str, Any]]:
    """All routers in all shapes, each shape printed as it is done."""
    print("| router |" + "".join(f" E {experts}, K {k} |" for experts, k in SHAPES))
    print("|---" * (len(SHAPES) + 1) + "|")
    columns = [_ratios(experts, k, repeats) for experts, k in SHAPES]
    rows = [{"router": name, "ratios": [column[name] for column in columns]} for name in ROUTINGS]
    for row in rows:
        print(f"| {row['router']} | {' | '.join(f'{ratio:.2f}' for ratio in row['ratios'])} |", flush=True)
    return rows


def _ratios(experts: int, top_k: int, repeats: int) -> dict[str, float]:
    """{router: time of the layer over that with the reference}."""
    shape = {"num_experts": experts, "top_k": top_k, "d_ff": D_FF, "activation": "relu", "group_size": TOKENS}
    calls = {name: _layer(MoEConfig(**shape, **fields, capacity_factor=1.0)) for name, fields in ROUTINGS.items()}
    times = paired_times(calls, repeats)
    return {name: median_ratio(times, name, REFERENCE) for name in calls}


def _layer(moe: MoEConfig):
    """A call of the compiled pass, on random tokens of random ids, with noise."""
    layer = MoELayer(D_MODEL, moe, fan_in_init(1.0), nnx.Rngs(params=0))
    x = jax.random.normal(jax.random.key(1), (1, TOKENS, D_MODEL))
    ids = jax.random.randint(jax.random.key(2), (1, TOKENS), 0, VOCABULARY)
    info = TokenInfo(ids, jnp.ones(ids.shape, bool), jax.random.split(jax.random.key(3), 1), jnp.int32(0))
    return whole_layer(layer, x, info)[1]
