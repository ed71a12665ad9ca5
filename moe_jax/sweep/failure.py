"""The record of a cell that failed: failure.json, and in TensorBoard's HPARAMS a session that ended in failure.

The process of the cell writes it. Where that was killed or never started, the process that runs the sweep does, and so
nothing here starts JAX: the sweep's own process must take no device from its cells.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_jax.journal import event_file
from moe_jax.journal.event_file import EventFile, session_end, session_start
from moe_jax.journal.hparams import hparams
from moe_jax.journal.workdir import write_json

FAILURE = "failure.json"


def record(workdir: Path, fields: Mapping[str, Any], error: str) -> None:
    """Records that the cell in `workdir`, whose flattened configuration is `fields`, failed with `error`."""
    sessions = workdir / "tensorboard" / "hparams"
    event_file.remove(sessions)
    session = EventFile(sessions, 0)
    session.write(0, [session_start(hparams(fields))])
    session.write(0, [session_end("failure")])
    session.close()
    write_json(workdir / FAILURE, {"error": error})


def is_recorded(workdir: Path) -> bool:
    """Whether the last attempt at the cell in `workdir` failed."""
    return (workdir / FAILURE).exists()


def read(workdir: Path) -> str:
    """The error with which the cell failed. Raises FileNotFoundError where no failure is recorded."""
    try:
        return json.loads((workdir / FAILURE).read_text())["error"]
    except (ValueError, TypeError, KeyError):
        return f"{FAILURE} cannot be read"


def forget(workdir: Path) -> None:
    """Removes the record, so that the cell can be tried again."""
    (workdir / FAILURE).unlink(missing_ok=True)
