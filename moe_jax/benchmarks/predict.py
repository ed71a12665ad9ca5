"""The audit's prediction of a training step over the step that this machine measures, config by config.

The machine's constants are measured in the same run: its fastest large matrix product, and the speed at which it adds
up a long array. The audit takes both as peaks that are reached.
"""

import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.audit.compile import build, compile_train_step
from moe_jax.audit.estimate import estimate
from moe_jax.audit.hlo import parse
from moe_jax.audit.links import Wires
from moe_jax.config import default_config
from moe_jax.optim.optimizer import make_optimizer
from moe_jax.parallel.chips import Chip
from moe_jax.parallel.mesh import make_mesh
from moe_jax.report.markdown import rows
from moe_jax.resolve import resolve
from moe_jax.tasks.registry import task_of
from moe_jax.train.setup import batch_on_mesh
from moe_jax.train.state import build_model, init_state, state_shapes

SIDE, LONG = 2048, 1 << 26  # of the matrices, and numbers of the array that is added up
COMMON = {
    "model.num_layers": 4, "model.num_heads": 4, "model.num_kv_heads": 4, "model.vocab_size": 1024,
    "data.sequence_length": 256, "data.batch_size": 16, "moe.group_size": 256, "moe.router": "top_k",
}  # fmt: skip


def _case(d_model: int, experts: int = 0, top_k: int = 1, capacity_factor: float = 1.25) -> dict[str, Any]:
    moe = {"moe.num_experts": experts, "moe.top_k": top_k, "moe.capacity_factor": capacity_factor} if experts else {}
    return {"model.d_model": d_model, "model.d_ff": 4 * d_model, **moe}


CASES = {
    "dense, d 128": _case(128),
    "dense, d 256": _case(256),
    "dense, d 512": _case(512),
    "E 8, K 1, d 128": _case(128, 8),
    "E 8, K 1, d 256": _case(256, 8),
    "E 8, K 1, d 512": _case(512, 8),
    "E 8, K 2, d 256": _case(256, 8, 2),
    "E 8, K 2, d 256, factor 2": _case(256, 8, 2, 2.0),
    "E 16, K 1, d 256": _case(256, 16),
    "E 16, K 2, d 256, factor 1": _case(256, 16, 2, 1.0),
    "E 32, K 1, d 256": _case(256, 32),
    "E 64, K 1, d 256": _case(256, 64),
    "E 64, K 4, d 128": _case(128, 64, 4),
}


def run(repeats: int) -> list[dict[str, Any]]:
    """Measures the machine, then predicts and measures every case, and prints the ratios and their spread."""
    repeats = min(repeats, 7)
    chip = measured_chip(repeats)
    print(f"this machine: {chip.flops / 1e9:,.0f} GFLOP/s, {chip.bandwidth / 1e9:.1f} GB/s")
    found: list[dict[str, Any]] = []
    for name, fields in CASES.items():
        predicted, measured = _predict_and_measure(COMMON | fields, chip, repeats)
        found.append({"case": name, "predicted_s": predicted, "measured_s": measured, "ratio": predicted / measured})
    shown = [[r["case"], f"{r['predicted_s']:.3f}", f"{r['measured_s']:.3f}", f"{r['ratio']:.2f}"] for r in found]
    print("\n".join(rows(["a training step", "predicted, s", "measured, s", "ratio"], shown)))
    ratios = [row["ratio"] for row in found]
    spread = dict(zip(("least", "median", "most"), np.quantile(ratios, [0, 0.5, 1]).tolist(), strict=True))
    print(", ".join(f"{name} {value:.2f}" for name, value in spread.items()))
    return [{"flops": chip.flops, "bandwidth": chip.bandwidth, **spread}, *found]


def measured_chip(repeats: int) -> Chip:
    """This machine, as the audit describes a chip."""
    matrix = jnp.ones((SIDE, SIDE))
    product = jax.jit(jnp.matmul)
    array = jnp.ones(LONG)
    add = jax.jit(jnp.sum)
    flops = 2.0 * SIDE**3 / _fastest(lambda: product(matrix, matrix), repeats)
    bandwidth = array.nbytes / _fastest(lambda: add(array), repeats)
    return Chip(flops=flops, memory=1e12, bandwidth=bandwidth, link=bandwidth)


def _fastest(call: Any, repeats: int) -> float:
    jax.block_until_ready(call())
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _predict_and_measure(fields: Mapping[str, Any], chip: Chip, repeats: int) -> tuple[float, float]:
    """Seconds of a step of training, as the audit walks its schedule, and the median of those measured."""
    config = default_config()
    config.update_from_flattened_dict(dict(fields))
    run = resolve(config, 1)
    mesh = make_mesh(run.mesh)
    compiled, seconds = compile_train_step(run, mesh)
    text = build(lambda: (compiled, seconds)).text
    wires = Wires(chip, list(mesh.devices.flat), 1)
    predicted = estimate(parse(text), [], wires, matmul=1.0, memory=1.0).schedule.seconds
    task = task_of(run)
    model = build_model(task, mesh)
    optimizer = make_optimizer(run.train, model.decayed)
    state: Any = init_state(task, state_shapes(model, optimizer, mesh), optimizer)
    ids = lambda leaf: jax.random.randint(jax.random.key(0), leaf.shape, 0, 256).astype(leaf.dtype)
    batch = jax.tree.map(lambda leaf: jax.device_put(ids(leaf), leaf.sharding), batch_on_mesh(task, mesh))
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - start)
    return predicted, float(np.median(times[1:]))
