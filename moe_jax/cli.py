"""What the scripts in `experiments/` share: flags, logging, and one clear line for what cannot run."""
import logging as python_logging
import sys
from collections.abc import Callable
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from moe_jax.config.resolve import resolve
from moe_jax.config.schema import RunConfig

BAD_INPUT = 2  # exit code


def define_run_flags() -> None:
    """--config=FILE with --config.section.field=value, and --workdir=DIR."""
    config_flags.DEFINE_config_file("config", None, "Config file, for instance configs/quickstart.py.")
    flags.DEFINE_string("workdir", None, "Directory of the run: metrics, checkpoints, results.")
    flags.mark_flags_as_required(["config", "workdir"])


def run_config() -> RunConfig:
    """The resolved --config, for the devices at hand."""
    return resolve(flags.FLAGS.config, jax.device_count())


def workdir() -> Path:
    """--workdir."""
    return Path(flags.FLAGS.workdir).expanduser()


def main(script: Callable[[], int | None]) -> None:
    """Runs a script: its return value is the exit code; a ValueError becomes one line on stderr and exit code 2."""
    app.run(lambda argv: _guarded(lambda: _run(script, argv)), flags_parser=lambda argv: _guarded(lambda: _parse(argv)))


def _run(script: Callable[[], int | None], argv: list[str]) -> int | None:
    if len(argv) > 1:
        raise ValueError(f"{argv[1]!r} is not a flag: write --flag=value")
    logging.set_verbosity(logging.INFO)
    # Orbax and Grain tell every save at this level; what they warn of is still shown.
    for chatty in ("orbax", "grain"):
        python_logging.getLogger(chatty).setLevel(python_logging.WARNING)
    return script()


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, FileNotFoundError) as error:
        raise ValueError(str(error).strip("'\"")) from None


def _guarded(call: Callable):
    try:
        return call()
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(BAD_INPUT)
