"""Seconds of a compiled step on a chip, three ways: by the roofline, by its schedule, by the compiler's own cycles."""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from moe_jax.audit.costs import Costs
from moe_jax.audit.hlo import Program
from moe_jax.audit.links import Wires
from moe_jax.audit.program import Collective
from moe_jax.audit.schedule import Rates, Walk, Walked
from moe_jax.parallel.chips import Chip

# What a step reaches of the chip's peaks, assumed until a fit says otherwise (docs/audit.md): XLA's large matrix
# products and its fused element-wise operations.
MATMUL, MEMORY = 0.8, 0.85
LEAST_SHARE = 0.005  # of a step, of what is listed
_ENTERED = ("while", "call", "conditional")  # whose computations are scheduled, and no part of one operation


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Of one run of a step on one device."""

    flops: float  # of matrix products, loops multiplied out
    bytes: float  # that pass through the chip's memory
    link_seconds: dict[str, float]  # of all collectives, by link
    lower: float  # seconds, if compute, memory and links all work side by side, the first two at their peaks
    upper: float  # seconds, if nothing runs beside anything else, at what a chip reaches of its peaks
    schedule: Walked  # likewise
    compiler: Walked | None  # by the compiler's cycles; None: it has none
    without_cycles: float  # fraction of the time of `compiler` that has no estimate of its own

    @property
    def seconds(self) -> float:
        """The best estimate that there is."""
        return (self.compiler or self.schedule).seconds


def estimate(
    program: Program,
    found: Sequence[Collective],
    wires: Wires,
    matmul: float = MATMUL,
    memory: float = MEMORY,
) -> Estimate:
    """Reads the times off a program.

    Args:
      program: parsed.
      found: its collectives.
      wires: between the devices.
      matmul: fraction of the peak FLOP/s that matrix products reach.
      memory: fraction of the peak bandwidth that memory reaches.
    """
    chip, costs, links = wires.chip, Costs(program), links_of(found, wires)
    flops, size, cycles, unknown = _totals(program, costs, chip)
    per_link: dict[str, float] = collections.defaultdict(float)
    for one in found:
        for link, seconds in wires.seconds(one).items():
            per_link[link] += one.count * seconds
    walk = lambda rates: Walk(program, costs, rates, links).whole()
    return Estimate(
        flops=flops,
        bytes=size,
        link_seconds=dict(per_link),
        lower=max(flops / chip.flops, size / chip.bandwidth, *per_link.values(), 0.0),
        upper=flops / (chip.flops * matmul) + size / (chip.bandwidth * memory) + sum(per_link.values()),
        schedule=walk(Rates(chip, matmul, memory)),
        compiler=walk(Rates(chip, matmul, memory, cycles=True)) if cycles else None,
        without_cycles=unknown / (unknown + cycles / chip.clock) if cycles else 1.0,
    )


def links_of(found: Sequence[Collective], wires: Wires) -> Mapping[str, tuple[str, float, str]]:
    """Of each collective, by the name of its instruction: the link that it takes longest on, seconds, and kind."""
    links = {}
    for one in found:
        spent = wires.seconds(one)
        link = max(spent, key=spent.__getitem__, default="")
        links[one.name] = (link, spent.get(link, 0.0), one.kind)
    return links


def _totals(program: Program, costs: Costs, chip: Chip) -> tuple[float, float, float, float]:
    """FLOPs, bytes, cycles, and the roofline's seconds of what has none, of all operations of a step."""
    flops = size = cycles = unknown = 0.0
    inside = _operations(program)
    for name, instructions in program.computations.items():
        runs = program.executions.get(name, 0.0)
        runs = 1.0 if math.isnan(runs) else runs  # in a loop whose length is not known, as in the walk
        if not runs or name in inside:
            continue
        for instruction in instructions:
            cost = costs.of(name, instruction)
            flops, size = flops + runs * cost.flops, size + runs * cost.bytes
            if math.isnan(cost.cycles):
                unknown += runs * max(cost.flops / chip.flops, cost.bytes / chip.bandwidth)
            else:
                cycles += runs * cost.cycles
    return flops, size, cycles, unknown


def _operations(program: Program) -> set[str]:
    """The computations that are the inside of one operation: of a fusion, or of what a reduction does."""
    inside: set[str] = set()
    for instructions in program.computations.values():
        for instruction in instructions:
            if instruction.opcode not in _ENTERED and not instruction.opcode.endswith("-start"):
                inside.update(callee for _, callee in instruction.callees())
    return inside


def as_record(found: Estimate) -> dict[str, Any]:
    """The estimate for audit.json."""
    shown = lambda walked: {"seconds": walked.seconds, **{f"{what}_s": s for what, s in walked.spent.items()}}
    return {
        "flops_per_device": found.flops,
        "memory_traffic_bytes": found.bytes,
        "link_seconds": found.link_seconds,
        "step_time_lower_s": found.lower,
        "step_time_upper_s": found.upper,
        "schedule": shown(found.schedule),
        "compiler": shown(found.compiler) if found.compiler else None,
        "compiler_without_estimate": found.without_cycles,
        "step_time_s": found.seconds,
        "lines": _lines(found.compiler or found.schedule),
    }


def _lines(walked: Walked) -> list[dict[str, Any]]:
    """The lines of Python that take more than `LEAST_SHARE` of a step, the longest first."""
    large = sorted(walked.lines.items(), key=lambda item: -item[1])
    return [
        {"line": line, "waits_for": what, "seconds": seconds}
        for (line, what), seconds in large
        if seconds > LEAST_SHARE * walked.seconds
    ]
