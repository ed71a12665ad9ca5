"""Our layer over Hugging Face's: Mixtral's block of transformers, by its fastest backend, forward and backward.

Needs torch and transformers (`make venv-peers`).
"""

import importlib
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PyTree

from moe_jax.benchmarks.layer import compiled_gradients
from moe_jax.benchmarks.timing import Ratio, paired_ratio, paired_times
from moe_jax.config.schema import MoEConfig
from moe_jax.moe.context import plain_context
from moe_jax.moe.layer import MoELayer
from moe_jax.parallel.sharding import fan_in_init

TOKENS, D_MODEL, D_FF, TOP_K = 4096, 256, 1024, 2
EXPERTS, DTYPES = (8, 64), ("float32", "bfloat16")
BACKENDS = ("eager", "grouped_mm")  # batched_mm copies a matrix for every choice of a token: it is for decoding
DISPATCHERS = ("dropless", "capacity")  # capacity at factor 1.25, which drops


def run(repeats: int) -> list[dict[str, Any]]:
    """Runs all cases and prints each as it is done."""
    print("| E | dtype | their fastest | " + " | ".join(f"{name} / theirs" for name in DISPATCHERS) + " |")
    print("|---|---|---|" + "---|" * len(DISPATCHERS))
    rows = []
    for experts, dtype in itertools.product(EXPERTS, DTYPES):
        candidates: dict[str, Callable[[], Any]] = {name: _ours(experts, dtype, name) for name in DISPATCHERS}
        candidates |= _theirs(experts, dtype)
        times = paired_times(candidates, repeats)
        fastest = min((name for name in BACKENDS if name in times), key=lambda name: sum(times[name]))
        ratios: dict[str, Ratio] = {name: paired_ratio(times, name, fastest) for name in DISPATCHERS}
        rows.append({"experts": experts, "dtype": dtype, "fastest": fastest, **ratios})
        print(f"| {experts} | {dtype} | {fastest} | " + " | ".join(map(str, ratios.values())) + " |", flush=True)
    return rows


def _ours(experts: int, dtype: str, dispatcher: str) -> Callable[[], PyTree]:
    moe = MoEConfig(
        num_experts=experts, top_k=TOP_K, router="top_k", normalize_gates=True, d_ff=D_FF, activation="swiglu",
        dispatcher=dispatcher, group_size=TOKENS,
    )  # fmt: skip
    layer = MoELayer(D_MODEL, moe, fan_in_init(1.0), nnx.Rngs(params=0), jnp.dtype(dtype))
    x = jax.random.normal(jax.random.key(1), (1, TOKENS, D_MODEL), dtype)
    graphdef, weights = nnx.split(layer)

    def loss(weights: PyTree, x: jax.Array) -> jax.Array:
        y, _ = nnx.merge(graphdef, weights)(x, plain_context(x.shape[:2]), True)
        return jnp.sum(jnp.square(y.astype(jnp.float32)))

    return compiled_gradients(loss, weights, x).call


def _theirs(experts: int, dtype: str) -> dict[str, Callable[[], Any]]:
    """Their block by each backend that runs here."""
    torch = importlib.import_module("torch")
    mixtral = importlib.import_module("transformers.models.mixtral.modeling_mixtral")
    torch.manual_seed(0)
    blocks: dict[str, Callable[[], Any]] = {}
    for backend in BACKENDS:
        config = mixtral.MixtralConfig(
            hidden_size=D_MODEL, intermediate_size=D_FF, num_local_experts=experts, num_experts_per_tok=TOP_K
        )
        config._experts_implementation = backend
        block = mixtral.MixtralSparseMoeBlock(config).to(getattr(torch, dtype))
        for weight in block.parameters():
            torch.nn.init.normal_(weight, std=0.05)
        x = torch.randn(1, TOKENS, D_MODEL, dtype=getattr(torch, dtype), requires_grad=True)

        def step(block: Any = block, x: Any = x) -> None:
            block.zero_grad(set_to_none=True)
            out = block(x)
            (out[0] if isinstance(out, tuple) else out).float().square().sum().backward()

        try:
            step()
        except (RuntimeError, NotImplementedError, ValueError):
            continue  # a backend that this machine or type lacks
        blocks[backend] = step
    return blocks
