"""How fast a Hugging Face folder becomes weights on a device, over reading its files with safetensors alone."""

import functools
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from safetensors.numpy import load_file

from moe_jax.benchmarks.timing import paired_ratio, turns
from moe_jax.config.schema import RunConfig, default_config
from moe_jax.interop.export import write_folder
from moe_jax.interop.families import FAMILIES, Family
from moe_jax.interop.load import Weights
from moe_jax.interop.loaded_model import load_hf
from moe_jax.parallel.mesh import make_mesh
from moe_jax.resolve import resolve
from moe_jax.tasks.registry import task_of
from moe_jax.train.state import build_model

LAYERS, HEAD = 4, 16
# Of Mixtral's and Qwen3's proportions, about a gigabyte in bfloat16 each: experts apart, as their files have them.
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"d_model": 2048, "d_ff": 8192, "num_layers": 6},
    "mixtral": {"d_model": 1024, "d_ff": 3584, "num_layers": LAYERS, "experts": 8, "top_k": 2},
    "qwen3_moe": {"d_model": 1024, "d_ff": 384, "num_layers": LAYERS, "experts": 96, "top_k": 8, "qk_norm": "head"},
}


def run(repeats: int) -> list[dict[str, Any]]:
    """Runs and prints the table: times of `load_hf` in bfloat16, warm, over those of safetensors' `load_file`."""
    print("| family | GB | load_hf GB/s | speed / safetensors |\n|---|---|---|---|")
    rows = []
    for name, sizes in MODELS.items():
        with tempfile.TemporaryDirectory() as directory:
            folder = Path(directory) / name
            size = write_random(folder, FAMILIES[name], **sizes)
            candidates: dict[str, Callable[[], Any]] = {
                "safetensors": functools.partial(_read, folder),
                "here": functools.partial(_load, folder),
            }
            times: dict[str, list[float]] = {candidate: [] for candidate in candidates}
            for order in [list(candidates), *turns(candidates, repeats)]:
                for candidate in order:
                    start = time.perf_counter()
                    candidates[candidate]()
                    times[candidate].append(time.perf_counter() - start)
        times = {candidate: seconds[1:] for candidate, seconds in times.items()}  # without the turn that warms up
        ratio = paired_ratio(times, "safetensors", "here")
        rate = size / sorted(times["here"])[repeats // 2]
        print(f"| {name} | {size / 1e9:.2f} | {rate / 1e9:.2f} | {ratio} |", flush=True)
        rows.append({"family": name, "bytes": size, "bytes_per_second": rate, "speed_over_safetensors": ratio.median})
    return rows


def _read(folder: Path) -> list[Any]:
    return [load_file(file) for file in sorted(folder.glob("*.safetensors"))]


def _load(folder: Path) -> Any:
    return jax.block_until_ready(load_hf(folder, dtype="bfloat16").weights)


def write_random(folder: Path, family: Family, **sizes: Any) -> int:
    """Writes a folder of random numbers in bfloat16, of a model of the sizes of `_run`; returns their bytes."""
    run = _run(**sizes)
    model = build_model(task_of(run), make_mesh(run.mesh))
    noise = np.random.default_rng(0).standard_normal(1 << 20).astype(ml_dtypes.bfloat16)
    params = jax.tree.map(lambda leaf: jax.device_put(np.resize(noise, leaf.shape)), model.shapes)
    write_folder(folder, run, Weights(params, {}), family, "BF16")
    return sum(2 * math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def _run(
    d_model: int,
    d_ff: int,
    num_layers: int,
    experts: int = 0,
    top_k: int = 0,
    qk_norm: str = "",
    vocab_size: int = 32000,
) -> RunConfig:
    config = default_config()
    heads = d_model // HEAD
    config.model.update(d_model=d_model, d_ff=d_ff, num_layers=num_layers, num_heads=heads, num_kv_heads=heads)
    config.model.update(vocab_size=vocab_size, tie_embeddings=False, activation="swiglu")
    if experts:
        config.moe.update(num_experts=experts, top_k=top_k, d_ff=d_ff, router="top_k", normalize_gates=True)
        config.attention.qk_norm = qk_norm
    return resolve(config)
