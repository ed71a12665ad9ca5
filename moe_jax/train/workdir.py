"""A work directory belongs to one run: its configuration is written at the first start and compared at every other."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_jax.config.resolve import ConfigError
from moe_jax.config.schema import RunConfig, flatten, identity

CONFIG = "config.json"


def claim(workdir: Path, run: RunConfig) -> None:
    """Makes `workdir` the home of `run`, or checks that it is. Nothing is overwritten before the check.

    Raises:
      ConfigError: the directory cannot be written, or belongs to a run with another identity (named field by field).
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"--workdir={workdir} cannot be written ({error.strerror}): choose another directory"
        ) from None
    if (workdir / CONFIG).exists():
        check_identity(workdir, run)
    write_json(workdir / CONFIG, flatten(run))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes all of `content` or, if the process dies meanwhile, leaves what was there."""
    draft = path.with_name(f"{path.name}.partial")
    draft.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(draft, path)


def check_identity(workdir: Path, run: RunConfig) -> None:
    """Raises ConfigError unless `workdir` holds a run that trains the same thing as `run`."""
    if not (workdir / CONFIG).exists():
        raise ConfigError(f"--workdir={workdir} holds no run ({CONFIG} is missing): train one there first")
    before = json.loads((workdir / CONFIG).read_text())
    now = json.loads(json.dumps(identity(run)))  # tuples as lists, as they come back from the file
    differing = [
        f"{name} was {before.get(name)!r}, is {value!r}" for name, value in now.items() if before.get(name) != value
    ]
    if differing:
        raise ConfigError(
            f"--workdir={workdir} holds another run ({'; '.join(differing)}): choose another directory, or set the "
            "fields back"
        )
