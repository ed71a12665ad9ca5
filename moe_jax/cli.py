"""What the scripts in `experiments/` share: flags, logging, and one line with an exit code for what goes wrong."""

import contextlib
import logging as python_logging
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from moe_jax.files import limits, terminal

terminal.quiet_interrupts()  # here, since the imports below take seconds

# isort: split
import jax
import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from moe_jax.config.rules import ConfigError, DivergedError, MachineError, directory
from moe_jax.config.schema import RunConfig, flatten
from moe_jax.parallel.processes import (
    COORDINATOR,
    NUM_PROCESSES,
    PROCESS_ID,
    Cluster,
    is_one_of_several,
    join,
    leave,
    nobody_came,
    tell_others,
    wait_for_the_watch,
)
from moe_jax.parallel.supervisor import fork_worker
from moe_jax.resolve import check_field, resolve

LEAVE_SECONDS = 20.0  # for what runs at exit, after Ctrl-C
BAD_INPUT, MACHINE, DIVERGED = 2, 3, 4  # exit codes; 1 is Python's own, for a fault of the code
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"  # how XLA words it
WAY_TO_OTHERS = r"(?i)gloo|nccl|coordination service"  # what it says where another process does not answer
VALUES = {  # of the types that absl parses: what a value is, and what to give
    int: "whole number: give one, as in 8",
    float: "number: give one, as in 1.25",
    bool: "truth value: give true or false",
}
_PACKAGE = Path(__file__).parent


def define_run_flags(required: bool = True) -> None:
    """--config=FILE with --config.section.field=value, and --workdir=DIR; a script may do without both."""
    config_flags.DEFINE_config_file("config", None, "Config file, for instance configs/quickstart.py.")
    if required:
        flags.mark_flag_as_required("config")
    define_workdir_flag(required)
    define_process_flags()


def define_process_flags() -> None:
    """What tells a process of the others that train the same run."""
    flags.DEFINE_boolean("distributed", False, "One of several processes, as Slurm, Open MPI or Kubernetes say.")
    flags.DEFINE_string("coordinator", os.environ.get(COORDINATOR, ""), "host:port of process 0, if there are several.")
    flags.DEFINE_integer("num_processes", _number(NUM_PROCESSES, 0), "How many processes there are.")
    flags.DEFINE_integer("process_id", _number(PROCESS_ID, -1), "Which of them this one is, counted from 0.")
    flags.DEFINE_integer("start_seconds", 300, "To wait for all processes at the start.", lower_bound=1)
    flags.DEFINE_integer("lost_seconds", 60, "Without a sign of life, after which a process is lost.", lower_bound=1)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default  # `_join_others` refuses what is none


def define_workdir_flag(required: bool = True) -> None:
    """--workdir=DIR."""
    flags.DEFINE_string("workdir", None, "Directory of the run: metrics, checkpoints, results.", required=required)


def config_path() -> Path:
    """The file of --config."""
    return Path(config_flags.get_config_filename(flags.FLAGS["config"]))


def base_config() -> ml_collections.ConfigDict:
    """--config with its overrides, not yet resolved."""
    try:
        return flags.FLAGS.config.copy_and_resolve_references()
    except OSError:  # the file is only read here
        raise _unreadable(config_path()) from None
    except AttributeError:
        raise ValueError(
            f"--config={config_path()}: get_config() returns no config: let it return default_config()"
        ) from None


def _unreadable(path: Path | str) -> ConfigError:
    """What keeps a config file from being read; the library that tried says it in other words."""
    remedy, reason = "give a file, such as those in configs/ that come with moe_jax", "it names no file"
    try:
        Path(path).open().close()
    except OSError as error:
        reason = error.strerror or str(error)
        remedy = "allow yourself to read it" if isinstance(error, PermissionError) else remedy
    return ConfigError(f"--config={path} cannot be read ({reason}): {remedy}")


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
        numbers = tuple(int(value) for value in values)
    except ValueError:
        raise ValueError(f"{flag}={','.join(values)}: give whole numbers") from None
    if not numbers:
        raise ValueError(f"{flag}= is empty: give whole numbers, as in {flag}=0,1")
    return numbers


def pairs(flag: str, text: str) -> dict[str, int | str]:
    """The NAME=VALUE,... of a flag, whole numbers as such."""
    parts = [part.partition("=") for part in text.split(",") if part]
    if any(not name or not equals for name, equals, _ in parts):
        raise ValueError(f"{flag}={text}: give NAME=VALUE, several joined by commas")
    return {name: int(value) if value.isdecimal() else value for name, _, value in parts}


def sizes(flag: str, text: str) -> dict[str, int]:
    """The AXIS=SIZE,... of a flag; raises ConfigError for a size that is no whole number."""
    given = pairs(flag, text)
    words = [axis for axis, size in given.items() if isinstance(size, str)]
    if words:
        raise ConfigError(f"{flag}={text}: {words[0]} is given no whole number: write {words[0]}=2, say")
    return {axis: int(size) for axis, size in given.items()}


def numbers(flag: str, text: str) -> dict[str, float]:
    """The NAME=NUMBER,... of a flag; raises ConfigError for what is no number."""
    found = {}
    for name, value in pairs(flag, text).items():
        try:
            found[name] = float(value)
        except ValueError:
            raise ConfigError(f"{flag}={text}: {name}={value} is no number: give one, as in {name}=2.5") from None
    return found


def refuse_flags(names: str, reason: str) -> None:
    """Raises ConfigError if one of the flags `names`, which stand between spaces, is on the command line."""
    for name in names.split():
        if flags.FLAGS[name].present:
            raise ConfigError(f"--{name} {reason}: leave it out")


def workdir() -> Path:
    """--workdir. Raises ConfigError where it can be no directory of this machine."""
    return directory("--workdir", flags.FLAGS.workdir)


def main(script: Callable[[], int | None]) -> None:
    """Runs a script: its return value is the exit code. What ends it early becomes one line on stderr and a code:

    BAD_INPUT for a ValueError of this package, MACHINE for what the system or its memory refuses, DIVERGED for training
    that has left the finite numbers, 128 + 2 for Ctrl-C. Any other exception is a fault of the code: its traceback is
    shown, and the code is 1.
    """
    terminal.prepare()
    sys.unraisablehook = _show_unraisable
    try:
        app.run(lambda argv: _run_and_leave(script, argv), flags_parser=lambda argv: _guarded(lambda: _parse(argv)))
    except SystemExit as ended:
        if ended.code == 128 + signal.SIGINT:
            _leave_in_time(ended.code)
        raise


def _run_and_leave(script: Callable[[], int | None], argv: list[str]) -> int | None:
    """What there is to say is said before other processes are waited for."""
    try:
        return _guarded(lambda: _run(script, argv))
    finally:
        leave()


def _run(script: Callable[[], int | None], argv: list[str]) -> int | None:
    if len(argv) > 1:
        raise ValueError(f"{argv[1]!r} is not a flag: write --flag=value")
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().addFilter(is_worth_showing)
    if (allowed := limits.allow_open_files()) < limits.FEWEST_FILES:
        raise MachineError(
            f"this process may open {allowed} files at a time, and needs {limits.FEWEST_FILES}: raise `ulimit -n`"
        )
    for name in flags.FLAGS:
        value = flags.FLAGS[name].value
        if isinstance(value, float) and not math.isfinite(value) and not name.startswith("config."):
            raise ConfigError(f"--{name}={value} is not finite: give a finite number")
    _join_others()
    try:
        return script()
    except (ValueError, MachineError, OSError, MemoryError) as error:
        tell_others(BAD_INPUT if isinstance(error, ValueError) else MACHINE)
        raise
    except jax.errors.JaxRuntimeError as error:
        if OUT_OF_MEMORY in str(error):
            tell_others(MACHINE)
        elif _is_of_machine(error):
            wait_for_the_watch(flags.FLAGS.lost_seconds)  # it knows who is lost
        raise


def _join_others() -> None:
    """Makes this process one of several, where its flags say so."""
    given = flags.FLAGS
    if "coordinator" not in given:
        return
    for name in (NUM_PROCESSES, PROCESS_ID):
        if not (text := os.environ.get(name, "0")).isdecimal():
            raise ConfigError(f"{name}={text} in the environment is no whole number: give one, or leave it out")
    if not (given.coordinator or given.distributed):
        if given.num_processes > 1 or given.process_id > 0:
            raise ConfigError(
                f"--num_processes={given.num_processes} and --process_id={given.process_id} without --coordinator: "
                "give host:port of process 0 too"
            )
        return
    cluster = Cluster(
        coordinator=given.coordinator,
        num_processes=given.num_processes,
        process_id=given.process_id,
        start_seconds=given.start_seconds,
        lost_seconds=given.lost_seconds,
    )
    joined = fork_worker(nobody_came(cluster))
    join(cluster)
    joined()


def is_worth_showing(record: python_logging.LogRecord) -> bool:
    """This package's messages, and others' warnings but for Orbax's.

    Orbax logs every file that it touches, and each of its failures several times, with tracebacks, before it raises
    them; so does asyncio, on which it writes.
    """
    path = Path(record.pathname)
    storage = {"orbax", "asyncio"}.intersection(path.parts)
    return path.is_relative_to(_PACKAGE) or (record.levelno >= python_logging.WARNING and not storage)


def _show_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    """Shows what was raised where nobody could catch it, but for writes that end after Orbax has given up on them."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _parse(argv: list[str]) -> list[str]:
    for argument in argv:
        if argument.startswith("--config."):
            check_field(argument.removeprefix("--config.").split("=")[0])
    try:
        return flags.FLAGS(argv)
    except (flags.Error, TypeError) as error:  # from a config file it carries a whole traceback
        line = re.sub(r"^[\w.]*Error: ", "", str(error).strip().splitlines()[-1])
        raise ValueError(_with_remedy(line)) from None
    except OSError:
        given = next((argument for argument in argv if argument.startswith("--config=")), "--config")
        raise _unreadable(given.removeprefix("--config=")) from None
    except (SyntaxError, NameError, AttributeError, KeyError, ImportError) as error:
        raise ValueError(f"the config file fails ({type(error).__name__}: {error}): correct it") from None


def _with_remedy(line: str) -> str:
    """What absl says of a flag that does not parse, as what to give instead."""
    if (unknown := re.match(r"Unknown command line flag '(.*?)'(?:\. Did you mean: (\S+) \?)?", line)) is not None:
        known = f", or perhaps --{unknown[2]}" if unknown[2] else ""
        return f"--{unknown[1]} is no flag of this script: leave it out{known} (--help lists all)"
    match = re.match(r"flag --(?P<name>[\w.]+)=(?P<value>.*?): ", line)
    if match is None:
        return line
    name, value = match["name"], match["value"]
    if "must have a value" in line:
        return f"--{name} is missing: give it ({flags.FLAGS[name].help})"
    if name.startswith("config."):
        default = flatten(RunConfig()).get(name.removeprefix("config."))
        return f"--{name}={value} is no {VALUES[type(default)]}" if type(default) in VALUES else line
    flag = flags.FLAGS[name]
    return f"--{name}={value}: give {flag.parser.syntactic_help or 'true or false'} ({flag.help})"


def _guarded(call: Callable):
    try:
        return call()
    except BrokenPipeError:  # whoever read the output has gone, as in `| head`
        sys.exit(128 + signal.SIGPIPE)
    except KeyboardInterrupt:
        _end("interrupted: the same command goes on from the newest checkpoint", 128 + signal.SIGINT)
    except DivergedError as error:
        _end(f"error: {error}", DIVERGED)
    except ConfigError as error:
        _end(f"error: {error}", BAD_INPUT)
    except (MachineError, OSError, MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and not _is_of_machine(error):
            raise
        _end(f"error: {_of_machine(error)}", MACHINE)
    except ValueError as error:
        if not _raised_here(error):
            raise
        _end(f"error: {error}", BAD_INPUT)


def _leave_in_time(code: int) -> None:
    """Ends the process soon, also where a thread of a library that was interrupted never ends."""
    timer = threading.Timer(LEAVE_SECONDS, os._exit, [code])
    timer.daemon = True
    timer.start()


def _end(line: str, code: int) -> NoReturn:
    logging.debug("Where it comes from (--verbosity=1):", exc_info=True)
    with contextlib.suppress(OSError):  # nobody may be listening
        print(" ".join(line.split()), file=sys.stderr)
    sys.exit(code)


def _is_of_machine(error: jax.errors.JaxRuntimeError) -> bool:
    """Whether a device is out of memory, or the way to other processes is lost."""
    return OUT_OF_MEMORY in str(error) or (is_one_of_several() and bool(re.search(WAY_TO_OTHERS, str(error))))


def _of_machine(error: BaseException) -> str:
    """What the machine refused, in one line."""
    if isinstance(error, jax.errors.JaxRuntimeError) and OUT_OF_MEMORY not in str(error):
        return (
            f"the other processes of this run cannot be reached ({str(error).splitlines()[0][:200]}): if one was lost, "
            "the same command goes on from the newest checkpoint"
        )
    if isinstance(error, jax.errors.JaxRuntimeError):
        return (
            f"a device is out of memory ({str(error).splitlines()[0]}): lower data.batch_size, raise train.accumulate, "
            "set model.remat='full', or take more devices"
        )
    if isinstance(error, MemoryError):
        return "this machine is out of memory: free some, or lower data.batch_size"
    if isinstance(error, OSError) and error.errno in limits.FULL:
        return f"no room is left for {error.filename or 'what is written'} ({error.strerror}): make room, and repeat"
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename is not None else ""
        return f"the system refuses: {error.strerror or error}{where}"
    return str(error)


def _raised_here(error: BaseException) -> bool:
    """Whether this package itself has raised the error, in words for the user."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and Path(frame.tb_frame.f_code.co_filename).is_relative_to(_PACKAGE)
