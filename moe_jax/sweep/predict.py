"""What the points of a sweep would take on hardware that is not there: step time, exchange and cost beside each."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging

from moe_jax.audit.answers import Work
from moe_jax.audit.cache import cached
from moe_jax.audit.links import Wires
from moe_jax.audit.table import audit
from moe_jax.audit.targets import Target, target_of
from moe_jax.config.rules import ConfigError
from moe_jax.config.schema import MeshConfig, RunConfig, flatten
from moe_jax.journal.workdir import make_writable, write_json
from moe_jax.parallel.mesh import make_mesh
from moe_jax.report.markdown import rows
from moe_jax.resolve import restore
from moe_jax.sweep.cells import Cell, name_of

FILE = "predictions.json"
KEPT = (
    "step_time_s", "step_time_lower_s", "step_time_upper_s", "tokens_per_second_per_device", "utilization",
    "exchange_share", "idle_share", "cost_per_million_tokens", "peak_memory_bytes", "fits",
)  # fmt: skip


def predict(cells: Sequence[Cell], name: str, mesh: Mapping[str, int], workdir: Path) -> None:
    """Audits each point of a sweep and writes WORKDIR/predictions.json, from where every report takes them.

    Args:
      cells: of the sweep; of each point the first.
      name: of the target.
      mesh: sizes of its axes. Empty: experts over as many devices as their number and that of devices allow, and the
        rest along data.
      workdir: of the sweep; what is compiled stays in a folder of it.
    """
    target, points = target_of(name), {name_of(cell.point): cell for cell in reversed(cells)}
    found: dict[str, Any] = {}
    for point, cell in reversed(points.items()):
        logging.info("Predicting %s on %s", point, name)
        try:
            found[point] = _predict(cell.run, target, mesh, workdir / "predicted" / point)
        except (ValueError, jax.errors.JaxRuntimeError) as error:
            found[point] = {"error": " ".join(str(error).split())[:300]}
    write_json(workdir / FILE, {"target": name, "points": found})


def _predict(run: RunConfig, target: Target, sizes: Mapping[str, int], folder: Path) -> dict[str, Any]:
    devices = len(target.devices)
    if not sizes:
        expert = math.gcd(run.moe.num_experts or 1, devices)
        sizes = {"data": devices // expert, "expert": expert}
    config = MeshConfig(**{axis: sizes.get(axis, 1) for axis in ("data", "fsdp", "expert", "tensor")})
    run = restore(flatten(dataclasses.replace(run, mesh=config)), devices)
    make_writable(folder)
    mesh = make_mesh(run.mesh, target.devices)
    built = cached(folder, target.name, run, mesh, Work())
    record = audit(run, mesh, built, Wires(target.chip, list(mesh.devices.flat), target.domain))
    return {"mesh": dataclasses.asdict(config)} | {name: record[name] for name in KEPT if name in record}


def section(workdir: Path) -> list[str]:
    """The predictions of a sweep for its report; nothing where none were made."""
    try:
        made = json.loads((workdir / FILE).read_text(encoding="utf-8"))
        target, points = made["target"], made["points"]
        body = [_row(point, one) for point, one in points.items()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logging.warning("%s is damaged (%s) and left out of the report: predict again", workdir / FILE, error)
        return []
    header = ["point", "s a step", "tokens/s a device", "utilization", "exchange", "all links", "$ a million tokens"]
    return [
        f"## Predicted on {target}",
        "Compiled for these devices, not run (docs/audit.md). Exchange and links: fractions of the step that wait for "
        "all-to-alls, and for any collective.",
        "\n".join(rows(header, body)),
    ]


def _row(point: str, one: Mapping[str, Any]) -> list[str]:
    if "step_time_s" not in one:
        return [point, one.get("error", "does not fit"), *[""] * 5]
    cost = one["cost_per_million_tokens"]
    return [
        point + ("" if one["fits"] else " (does not fit)"), f"{one['step_time_s']:.4g}",
        f"{one['tokens_per_second_per_device']:,.0f}", f"{one['utilization']:.1%}", f"{one['exchange_share']:.1%}",
        f"{one['idle_share']:.1%}", "" if cost is None else f"{cost:.4g}",
    ]  # fmt: skip


def check_mesh(sizes: Mapping[str, int]) -> None:
    """Raises ConfigError for an axis that there is not."""
    for axis in sizes:
        if axis not in ("data", "fsdp", "expert", "tensor"):
            raise ConfigError(f"--predict_mesh: {axis} is no mesh axis: use data, fsdp, expert or tensor")
