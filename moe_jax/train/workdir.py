"""A work directory belongs to one run: its configuration is written at the first start and compared at every other."""
import json
import os
from pathlib import Path

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
        raise ConfigError(f"--workdir={workdir} cannot be written ({error.strerror}): choose another directory") from None
    if (workdir / CONFIG).exists():
        _check_identity(workdir, run)
    draft = workdir / f"{CONFIG}.partial"
    draft.write_text(json.dumps(flatten(run), indent=2) + "\n")
    os.replace(draft, workdir / CONFIG)


def _check_identity(workdir: Path, run: RunConfig) -> None:
    before = json.loads((workdir / CONFIG).read_text())
    now = json.loads(json.dumps(identity(run)))  # tuples as lists, as they come back from the file
    differing = [f"{name} was {before.get(name)!r}, is {value!r}" for name, value in now.items() if before.get(name) != value]
    if differing:
        raise ConfigError(
            f"--workdir={workdir} holds another run ({'; '.join(differing)}): choose another directory, or set the "
            "fields back"
        )
