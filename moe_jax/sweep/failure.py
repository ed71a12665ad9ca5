"""What is recorded of a cell that failed: failure.json, and in TensorBoard's HPARAMS a session that ended in failure.

The process of the cell writes it, or, where that was killed or never started, the one that runs the sweep: without JAX,
so that this one takes no device.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_jax.journal.event_file import EventFile, session_end, session_start
from moe_jax.journal.workdir import write_json
from moe_jax.train import report

FAILURE = "failure.json"


def record(directory: Path, fields: Mapping[str, Any], error: str) -> None:
    """Records the failure of the cell with these fields, flattened."""
    sessions = directory / "tensorboard" / "hparams"
    for earlier in sessions.glob("events.out.tfevents.*"):
        earlier.unlink()
    session = EventFile(sessions, 0)
    session.write(0, [session_start(report.hparams(dict(fields)))])
    session.write(0, [session_end("failure")])
    session.close()
    write_json(directory / FAILURE, {"error": error})


def is_recorded(directory: Path) -> bool:
    """Whether the cell's last attempt failed."""
    return (directory / FAILURE).exists()


def read(directory: Path) -> str:
    """Why it failed."""
    try:
        return json.loads((directory / FAILURE).read_text())["error"]
    except (ValueError, TypeError, KeyError):
        return f"{FAILURE} cannot be read"


def forget(directory: Path) -> None:
    """Makes way for another attempt."""
    (directory / FAILURE).unlink(missing_ok=True)
