"""What a compiled training step costs, as a table to read and as data."""

import itertools
from typing import Any

import jax
from jax.sharding import Mesh

from moe_jax.audit.contract import violations
from moe_jax.audit.program import bytes_sent, collectives
from moe_jax.config.schema import RunConfig
from moe_jax.resolve.counting import causal_flops_per_token, count


def audit(run: RunConfig, mesh: Mesh, compiled: jax.stages.Compiled, compile_seconds: float) -> dict[str, Any]:
    """Memory and communication of a step, per device, and the FLOPs a token that `resolve` counts for the model.

    `collectives` has a row for each kind, axes and way of running. Its `count` is the number of runs in a step, `bytes`
    their payload and `bytes_sent` what the ring formula sends of it, both summed over the runs; `beside_matmul` counts
    the runs that have a matrix product scheduled between their start and their done, `hidden` those that have one or
    other work on as many bytes. `exposed_bytes` are those sent by all other runs. Raises ValueError where the
    compiler reports neither text nor memory.
    """
    text, memory = compiled.as_text(), compiled.memory_analysis()
    if text is None or memory is None:
        raise ValueError("the compiler of this platform reports no text or no memory: audit for another target")
    found = collectives(text, mesh, run.moe.exchange_nodes)
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
    return {
        "devices": mesh.size,
        "flops_per_token": count(run).flops_per_token,
        "causal_flops_per_token": causal_flops_per_token(run),
        "mesh": dict(mesh.shape),
        "peak_memory_bytes": memory.peak_memory_in_bytes,
        "bytes_sent": sum(row["bytes_sent"] for row in rows),
        "exposed_bytes": sum(c.count * bytes_sent(c) for c in found if not c.hidden),
        "collectives": rows,
        "violations": violations(found, run, mesh),
        "compile_seconds": compile_seconds,
    }


def table(result: dict[str, Any]) -> str:
    """The audit as Markdown."""
    lines = [
        f"{result['devices']} devices: {result['bytes_sent'] / 1e9:.2f} GB sent a device and step, "
        f"{result['exposed_bytes'] / 1e9:.2f} of them beside less work than that, peak memory "
        f"{result['peak_memory_bytes'] / 1e9:.2f} GB, compiled in {result['compile_seconds']:.0f} s.",
        f"The model takes {result['flops_per_token'] / 1e9:,.2f} GFLOPs a token, "
        f"{result['causal_flops_per_token'] / 1e9:,.2f} with half of the scores (moe_jax/resolve/counting.py).",
        "",
        "| collective | over | asynchronous | runs a step | beside a matmul | or as much other work | GB sent |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['kind']} | {row['axis']} | {'yes' if row['asynchronous'] else 'no'} | {row['count']:.0f} "
        f"| {row['beside_matmul']:.0f} | {row['hidden']:.0f} | {row['bytes_sent'] / 1e9:.3f} |"
        for row in result["collectives"]
    ]
    broken = result["violations"]
    return "\n".join([*lines, "", "The collective contract holds." if not broken else "Broken: " + "; ".join(broken)])
