"""What a compiled step costs, as data and as a table to read."""

import itertools
from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh

from moe_jax.audit.answers import TRAIN, Work, answers
from moe_jax.audit.compile import Built
from moe_jax.audit.contract import violations
from moe_jax.audit.estimate import MATMUL, MEMORY, as_record, estimate
from moe_jax.audit.hlo import parse
from moe_jax.audit.links import Wires
from moe_jax.audit.program import Collective, bytes_sent, collectives
from moe_jax.config.schema import RunConfig
from moe_jax.report.markdown import rows
from moe_jax.resolve.counting import causal_flops_per_token, count


def audit(
    run: RunConfig,
    mesh: Mesh,
    built: Built,
    wires: Wires | None = None,
    work: Work | None = None,
    matmul: float = MATMUL,
    memory: float = MEMORY,
) -> dict[str, Any]:
    """Memory, communication and time of a step, per device.

    `collectives` has a row for each kind, axes and way of running. Its `count` is the number of runs in a step, `bytes`
    their payload and `bytes_sent` what the ring formula sends of it, both summed over the runs; `beside_matmul` counts
    the runs that have a matrix product scheduled between their start and their done, `hidden` those that have one or
    other work on as many bytes. `exposed_bytes` are those sent by all other runs.

    Args:
      run: what is trained or decoded.
      mesh: on which it was compiled.
      built: the compiled step.
      wires: between the devices; None: no times.
      work: what a step does; None: a step of training.
      matmul: fraction of the peak FLOP/s that matrix products reach.
      memory: fraction of the peak bandwidth that memory reaches.
    """
    work = work or Work()
    found = collectives(built.text, mesh, run.moe.exchange_nodes) if built.text else []
    record = {
        "mode": work.mode,
        "devices": mesh.size,
        "mesh": dict(mesh.shape),
        "flops_per_token": count(run).flops_per_token,
        "causal_flops_per_token": causal_flops_per_token(run),
        "peak_memory_bytes": built.peak_memory,
        "bytes_sent": sum(c.count * bytes_sent(c) for c in found),
        "exposed_bytes": sum(c.count * bytes_sent(c) for c in found if not c.hidden),
        "collectives": _rows(found),
        "violations": violations(found, run, mesh) if built.text and work.mode == TRAIN else [],
        "compile_seconds": built.seconds,
    }
    if wires is None:
        return record
    timed = estimate(parse(built.text), found, wires, matmul, memory) if built.text else None
    record |= answers(run, work, built, wires.chip, timed)
    return record | (as_record(timed) if timed else {})


def _rows(found: Sequence[Collective]) -> list[dict[str, Any]]:
    row_of = lambda c: (c.kind, c.axes, c.asynchronous)
    rows = []
    for (kind, axes, asynchronous), alike in itertools.groupby(sorted(found, key=row_of), key=row_of):
        members = list(alike)
        rows.append(
            {
                "kind": kind,
                "axis": "+".join(axes),
                "asynchronous": asynchronous,
                "count": sum(c.count for c in members),
                "bytes": sum(c.count * c.bytes for c in members),
                "bytes_sent": sum(c.count * bytes_sent(c) for c in members),
                "beside_matmul": sum(c.count for c in members if "dot" in c.overlapped),
                "hidden": sum(c.count for c in members if c.hidden),
            }
        )
    return rows


def table(result: dict[str, Any]) -> str:
    """The audit as Markdown."""
    lines = [
        f"{result['devices']} devices: {result['bytes_sent'] / 1e9:.2f} GB sent a device and step, "
        f"{result['exposed_bytes'] / 1e9:.2f} of them beside less work than that, peak memory "
        f"{result['peak_memory_bytes'] / 1e9:.2f} GB, compiled in {result['compile_seconds']:.0f} s.",
        f"The model takes {result['flops_per_token'] / 1e9:,.2f} GFLOPs a token, "
        f"{result['causal_flops_per_token'] / 1e9:,.2f} with half of the scores (moe_jax/resolve/counting.py).",
        "",
    ]
    if "fits" in result:
        lines += [_fits(result), ""]
    if "step_time_s" in result:
        lines += [*_times(result), ""]
    body = [
        [
            row["kind"], row["axis"], "yes" if row["asynchronous"] else "no", f"{row['count']:.0f}",
            f"{row['beside_matmul']:.0f}", f"{row['hidden']:.0f}", f"{row['bytes_sent'] / 1e9:.3f}",
        ]
        for row in result["collectives"]
    ]  # fmt: skip
    header = ["collective", "over", "asynchronous", "runs a step", "beside a matmul", "or other work", "GB sent"]
    lines += rows(header, body)
    broken = result["violations"]
    contract = "The collective contract holds." if not broken else "Broken: " + "; ".join(broken)
    return "\n".join([*lines, *(["", contract] if result["mode"] == TRAIN else [])])


def _fits(result: dict[str, Any]) -> str:
    peak, memory = result["peak_memory_bytes"], result["chip_memory_bytes"]
    if result["fits"]:
        return f"It fits: {peak / 1e9:.1f} of {memory / 1e9:.1f} GB."
    return f"**It does not fit**: {peak / 1e9:.1f} of {memory / 1e9:.1f} GB, {(peak - memory) / 1e9:.1f} GB too much."


def _times(result: dict[str, Any]) -> list[str]:
    """Seconds a step by each of the ways, and what they mean."""
    ways = {"roofline, all side by side": result["step_time_lower_s"], "one after another": result["step_time_upper_s"]}
    header, body = ["a step, by", "s", "tokens/s a device", "utilization"], []
    ways["the schedule"] = result["schedule"]["seconds"]
    if result["compiler"]:
        ways["the schedule, with the compiler's cycles"] = result["compiler"]["seconds"]
    tokens, best = result["tokens_per_step"] / result["devices"], result["step_time_s"]
    for way, seconds in ways.items():
        used = result["utilization"] * best / seconds
        body.append([way, f"{seconds:.4g}", f"{tokens / seconds:,.0f}", f"{used:.1%}"])
    walked = result["compiler"] or result["schedule"]
    spent = {name.removesuffix("_s"): s for name, s in walked.items() if name.endswith("_s")}
    large = sorted((item for item in spent.items() if item[1] > best / 1000), key=lambda item: -item[1])
    shares = ", ".join(f"{name} {seconds / best:.1%}" for name, seconds in large)
    cost, energy = result["cost_per_million_tokens"], result["kilowatt_hours_per_million_tokens"]
    money = [f"{result['chip_hours_per_million_tokens']:.4g} chip-hours a million tokens"]
    money += [f"${cost:.4g}"] if cost is not None else []
    money += [f"{energy:.3g} kWh"] if energy is not None else []
    lines = [*rows(header, body), "", f"The step waits for: {shares}.", f"{', '.join(money)}."]
    if result["compiler"]:
        lines.append(f"{result['compiler_without_estimate']:.1%} of that time has no cycles of the compiler.")
    where = [
        [one["line"], one["waits_for"], f"{one['seconds']:.4g}", f"{one['seconds'] / best:.1%}"]
        for one in result["lines"]
    ]
    return [*lines, "", *rows(["line", "waits for", "s", "of the step"], where)]
