"""What it costs to drop nothing: the whole dropless layer over the one with capacity factor 1, which drops."""

import statistics
from typing import Any

from moe_jax.benchmarks.layer import LayerCase, build, expert_matmuls, whole_layer
from moe_jax.benchmarks.timing import paired_ratio, paired_times

CASES = tuple(
    LayerCase(256, 1024, *shape, routing) for shape in ((8, 2), (64, 2), (64, 1)) for routing in ("uniform", "zipf")
)
GROWTH = (8, 128)  # experts, at K = 2


def run(repeats: int) -> list[dict[str, Any]]:
    """Runs all cases and prints each as it is done."""
    print("| d | F | E | K | routing | dropless / capacity | capacity, ms |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for case in CASES:
        programs = {name: whole_layer(*build(case, name)).call for name in ("dropless", "capacity")}
        times = paired_times(programs, repeats)
        ratio = paired_ratio(times, "dropless", "capacity")
        rows.append(case._asdict() | {"ratio": ratio, "capacity_ms": 1e3 * statistics.median(times["capacity"])})
        print(
            f"| {case.d_model} | {case.d_ff} | {case.num_experts} | {case.top_k} | {case.routing} | {ratio} "
            f"| {rows[-1]['capacity_ms']:.0f} |",
            flush=True,
        )
    return [*rows, _growth(repeats)]


def _growth(repeats: int) -> dict[str, Any]:
    """How much slower many experts are than few, for the layer and for the matmuls of its experts."""
    candidates = {}
    for experts in GROWTH:
        case = LayerCase(256, 1024, experts, 2, "uniform")
        layer, x = build(case, "dropless")
        candidates[f"layer {experts}"] = whole_layer(layer, x).call
        candidates[f"matmuls {experts}"] = expert_matmuls(*build(case, "capacity")).call
    times = paired_times(candidates, repeats)
    few, many = GROWTH
    grown = {name: paired_ratio(times, f"{name} {many}", f"{name} {few}") for name in ("layer", "matmuls")}
    over = grown["layer"].median / grown["matmuls"].median
    print(f"from {few} to {many} experts: layer {grown['layer']}, matmuls alone {grown['matmuls']}: {over:.2f}")
    return {"experts": GROWTH, **grown, "growth_over_matmuls": over}
