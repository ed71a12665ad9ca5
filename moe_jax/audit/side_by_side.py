"""Several targets in one table, each audited in a process of its own, which may fail or take too long alone."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import logging

from moe_jax.journal.workdir import make_writable
from moe_jax.report.markdown import rows


def audit_each(
    script: Path, arguments: Sequence[str], targets: Sequence[str], workdir: Path, limit: float
) -> list[dict]:
    """The records of all targets: what audit.json holds, or `error`, one line.

    Args:
      script: experiments/audit.py.
      arguments: of it, without --target and --workdir.
      targets: their names.
      workdir: each has a folder in it.
      limit: seconds that one may take.
    """
    found = []
    for target in targets:
        folder = workdir / re.sub(r"[^\w.]+", "_", target)
        make_writable(folder)
        (folder / "audit.json").unlink(missing_ok=True)
        command = [sys.executable, str(script), *arguments, f"--target={target}", f"--workdir={folder}"]
        logging.info("%s ...", target)
        found.append({"target": target, **_audit(command, folder, limit)})
    return found


def _audit(command: Sequence[str], folder: Path, limit: float) -> dict[str, Any]:
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"error": f"it takes longer than --limit_s={limit:g}: raise it, or take fewer devices"}
    if ended.returncode == 0:
        return json.loads((folder / "audit.json").read_text())
    lines = ended.stderr.strip().splitlines() or [f"it ended with code {ended.returncode}"]
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return {"error": (said or lines)[-1][:300]}


def table(found: Sequence[dict[str, Any]]) -> str:
    """The records side by side, the most tokens for the money first where prices are known, then by speed."""
    header = [
        "target", "devices", "memory, GB", "fits", "s a step", "tokens/s a device", "utilization", "waits for links",
        "of them exchange", "$ a million tokens",
    ]  # fmt: skip
    good = [one for one in found if "step_time_s" in one]
    cost = lambda one: one["cost_per_million_tokens"] if one["cost_per_million_tokens"] is not None else float("inf")
    good.sort(key=lambda one: (not one["fits"], cost(one), -one["tokens_per_second_per_device"]))
    body = [
        [
            one["target"], str(one["devices"]),
            f"{one['peak_memory_bytes'] / 1e9:.1f} of {one['chip_memory_bytes'] / 1e9:.0f}",
            "yes" if one["fits"] else "no", f"{one['step_time_s']:.4g}", f"{one['tokens_per_second_per_device']:,.0f}",
            f"{one['utilization']:.1%}", f"{one['idle_share']:.1%}", f"{one['exchange_share']:.1%}",
            "" if one["cost_per_million_tokens"] is None else f"{one['cost_per_million_tokens']:.4g}",
        ]
        for one in good
    ]  # fmt: skip
    lines = rows(header, body)
    for one in found:
        if "error" in one:
            lines += ["", f"{one['target']}: {one['error']}"]
        elif "step_time_s" not in one:
            needs, has = one["peak_memory_bytes"] / 1e9, one["chip_memory_bytes"] / 1e9
            lines += ["", f"{one['target']}: does not fit, {needs:.1f} of {has:.1f} GB"]
    return "\n".join(lines)
