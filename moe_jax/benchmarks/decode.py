"""Decoding: a sparse model over dense ones of equal size, over the memory's own speed, and batching without gaps."""

import time
from typing import Any

import numpy as np

from moe_jax.benchmarks.timing import paired_ratio, turns
from moe_jax.config import default_config
from moe_jax.config.schema import MeshConfig, RunConfig
from moe_jax.inference.cost import measure, memory_bandwidth
from moe_jax.inference.dense_twins import dense_twin, drawn, random_engine
from moe_jax.inference.engine import Engine, Request
from moe_jax.inference.steps import Steps, cache_shapes
from moe_jax.inference.text import Text
from moe_jax.inference.weights import num_bytes, weight_shapes
from moe_jax.parallel.mesh import make_mesh
from moe_jax.resolve import resolve

WIDE = {  # 16 experts, 2 of them a token: experts of 805 MB in float32
    "model.num_layers": 4, "model.d_model": 1024, "model.d_ff": 1024, "model.num_heads": 8, "model.vocab_size": 1024,
    "model.activation": "swiglu", "moe.num_experts": 16, "moe.top_k": 2, "moe.router": "top_k",
}  # fmt: skip
NARROW = WIDE | {"model.num_layers": 2, "model.d_model": 256, "model.d_ff": 512, "model.num_heads": 4}
PROMPT, TOKENS, LENGTH = 8, 24, 256
LENGTHS = (200, *(8,) * 7) * 4  # of the answers in a skewed mix
PLACES = 8
DEPTHS = (2, 8)
MOST_REPEATS = 5


def run(repeats: int) -> list[dict[str, Any]]:
    """Runs all cases and prints each."""
    repeats = min(repeats, MOST_REPEATS)
    return [_sparse_and_dense(repeats), _forms(repeats), _continuous(repeats), _compile_time()]


def _engine(fields: dict[str, Any], places: int, continuous: bool = True, form: str = "") -> Engine:
    run, mesh = _run(fields), make_mesh(MeshConfig())
    text = Text(lambda text: [1], lambda ids: "", frozenset())
    return Engine(run, mesh, drawn(run, mesh, form), text, places, LENGTH, 16, continuous)


def _run(fields: dict[str, Any]) -> RunConfig:
    config = default_config()
    config.update_from_flattened_dict(fields)
    config.moe.group_size = config.data.sequence_length
    return resolve(config, 1)


def _requests(lengths: tuple[int, ...]) -> list[Request]:
    rng = np.random.default_rng(0)
    return [Request(tuple(map(int, rng.integers(1, 1000, PROMPT))), tokens, ignore_stop=True) for tokens in lengths]


def _sparse_and_dense(repeats: int) -> dict[str, Any]:
    """One sequence, in turns: the time of a step over that of a dense model, beside the ratio of the bytes it reads."""
    sparse = _engine(WIDE, 1)
    engines = {"sparse": sparse, "dense": random_engine(dense_twin(sparse.steps.run, lambda c: c.total_params), sparse)}
    requests, bandwidth = _requests((TOKENS,)), memory_bandwidth(sparse)
    costs: dict[str, list[Any]] = {name: [] for name in engines}
    for order in turns(engines, repeats):
        for name in order:
            costs[name].append(measure(engines[name], requests, bandwidth))
    times = {name: [cost.seconds_between_tokens for cost in of] for name, of in costs.items()}
    faster = paired_ratio(times, "dense", "sparse")
    size = {name: of[0].weight_bytes_per_step + of[0].cache_bytes_per_step for name, of in costs.items()}
    fewer = size["dense"] / size["sparse"]
    over = {name: float(np.median([cost.over_bandwidth_bound for cost in of])) for name, of in costs.items()}
    print(f"batch 1: dense over sparse {faster}, bytes {fewer:.2f}: {faster.median / fewer:.2f} of their ratio")
    print(f"step over its bytes at {bandwidth / 1e9:.1f} GB/s: sparse {over['sparse']:.2f}, dense {over['dense']:.2f}")
    return {"dense_over_sparse": faster, "bytes_ratio": fewer, "over_bandwidth_bound": over, "bandwidth": bandwidth}


def _forms(repeats: int) -> dict[str, Any]:
    """One sequence, in turns: weights in other forms over float32 ones, by time and by size."""
    forms = {"float32": {}, "bfloat16": {"model.dtype": "bfloat16"}, "int8": {}}
    engines = {name: _engine(WIDE | fields, 1, form="int8" * (name == "int8")) for name, fields in forms.items()}
    requests = _requests((TOKENS,))
    times: dict[str, list[float]] = {name: [] for name in engines}
    for order in turns(engines, repeats):
        for name in order:
            times[name].append(measure(engines[name], requests, bandwidth=1.0).seconds_between_tokens)
    size = {name: num_bytes(engine.steps.weights) for name, engine in engines.items()}
    result = {}
    for name in ("bfloat16", "int8"):
        ratio = paired_ratio(times, name, "float32")
        result[name] = {"time_over_float32": ratio, "bytes_over_float32": size[name] / size["float32"]}
        print(f"{name} over float32: time {ratio}, bytes {size[name] / size['float32']:.2f}")
    return result


def _continuous(repeats: int) -> dict[str, Any]:
    """A skewed mix of lengths: places that are filled again at once over those that wait for each other."""
    engines = {"continuous": _engine(NARROW, PLACES), "static": _engine(NARROW, PLACES, continuous=False)}
    requests = _requests(LENGTHS)
    times: dict[str, list[float]] = {name: [] for name in engines}
    for order in turns(engines, repeats + 1):  # the first to compile
        for name in order:
            start = time.perf_counter()
            for _ in engines[name].answers(requests):
                pass
            times[name].append(time.perf_counter() - start)
    ratio = paired_ratio({name: of[1:] for name, of in times.items()}, "static", "continuous")
    mix = f"{len(LENGTHS)} answers of {min(LENGTHS)} or {max(LENGTHS)} tokens"
    print(f"{mix} in {PLACES} places: static over continuous {ratio}")
    return {"static_over_continuous": ratio}


def _compile_time() -> dict[str, Any]:
    """Seconds to compile the step of decoding, by depth."""
    seconds = {}
    for depth in DEPTHS:
        run, mesh = _run(NARROW | {"model.num_layers": depth}), make_mesh(MeshConfig())
        steps, caches = Steps(run, mesh, weight_shapes(run, mesh)), cache_shapes(run, mesh, 1, LENGTH, 16)
        start = time.perf_counter()
        steps.lower(caches).compile()
        seconds[depth] = time.perf_counter() - start
    few, many = DEPTHS
    each = (seconds[many] - seconds[few]) / (many - few)
    print(
        f"compiling a step of {few} and {many} layers: {seconds[few]:.2f} and {seconds[many]:.2f} s, {each:.2f} a layer"
    )
    return {"seconds": seconds, "seconds_a_layer": each}
