"""What the scripts in `experiments/` share: flags, logging, and one clear line for what cannot run."""

import logging as python_logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from moe_jax.config.schema import RunConfig
from moe_jax.resolve import check_field, resolve

BAD_INPUT = 2  # exit code
_PACKAGE = Path(__file__).parent


def define_run_flags() -> None:
    """--config=FILE with --config.section.field=value, and --workdir=DIR."""
    config_flags.DEFINE_config_file("config", None, "Config file, for instance configs/quickstart.py.")
    flags.mark_flag_as_required("config")
    define_workdir_flag()


def define_workdir_flag() -> None:
    """--workdir=DIR."""
    flags.DEFINE_string("workdir", None, "Directory of the run: metrics, checkpoints, results.", required=True)


def config_path() -> Path:
    """The file of --config."""
    return Path(config_flags.get_config_filename(flags.FLAGS["config"]))


def base_config() -> ml_collections.ConfigDict:
    """--config with its overrides, not yet resolved."""
    try:
        return flags.FLAGS.config.copy_and_resolve_references()
    except OSError:  # the file is only read here
        raise ValueError(
            f"--config={config_path()} cannot be read: configs/ holds the ones that come with moe_jax"
        ) from None
    except AttributeError:
        raise ValueError(
            f"--config={config_path()}: get_config() returns no config: let it return default_config()"
        ) from None


def run_config(num_devices: int | None = None) -> RunConfig:
    """The resolved --config, for so many devices (default: those at hand)."""
    config = base_config()
    return resolve(config, jax.device_count() if num_devices is None else num_devices)


def refuse_overrides(fields: Mapping[str, str]) -> None:
    """Raises ValueError if one of `fields` was set as --config.FIELD; {field: what sets it instead}."""
    for name in overrides():
        if name in fields:
            raise ValueError(f"--config.{name} is set by {fields[name]}: leave it out")


def overrides() -> tuple[str, ...]:
    """The fields that the command line sets, as in --config.FIELD=value."""
    return tuple(config_flags.get_override_values(flags.FLAGS["config"]))


def integers(flag: str, values: Sequence[str]) -> tuple[int, ...]:
    """The numbers of a flag; raises ValueError, naming it, for what is none."""
    try:
        return tuple(int(value) for value in values)
    except ValueError:
        raise ValueError(f"{flag}={','.join(values)}: give whole numbers") from None


def pairs(flag: str, text: str) -> dict[str, int | str]:
    """The NAME=VALUE,... of a flag, whole numbers as such."""
    parts = [part.partition("=") for part in text.split(",") if part]
    if any(not name or not equals for name, equals, _ in parts):
        raise ValueError(f"{flag}={text}: give NAME=VALUE, several joined by commas")
    return {name: int(value) if value.isdecimal() else value for name, _, value in parts}


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
    logging.get_absl_handler().addFilter(_is_worth_showing)
    return script()


def _is_worth_showing(record: python_logging.LogRecord) -> bool:
    """This package's messages, and others' warnings: Orbax logs every file it touches through absl's logger too."""
    return record.levelno >= python_logging.WARNING or Path(record.pathname).is_relative_to(_PACKAGE)


def _parse(argv: list[str]) -> list[str]:
    for argument in argv:
        if argument.startswith("--config."):
            check_field(argument.removeprefix("--config.").split("=")[0])
    try:
        return flags.FLAGS(argv)
    except (flags.Error, TypeError) as error:  # from a config file it carries a whole traceback
        raise ValueError(str(error).strip().splitlines()[-1]) from None
    except (SyntaxError, NameError, AttributeError, KeyError, ImportError) as error:
        raise ValueError(f"the config file fails ({type(error).__name__}: {error}): correct it") from None


def _guarded(call: Callable):
    try:
        return call()
    except ValueError as error:
        logging.debug("Where it comes from (--verbosity=1):", exc_info=True)
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(BAD_INPUT)
