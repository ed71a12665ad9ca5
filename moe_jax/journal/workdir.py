"""A work directory belongs to one run: its configuration is written at the first start and compared at every other."""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from moe_jax.config.rules import ConfigError, MachineError
from moe_jax.config.schema import RunConfig, architecture, flatten, identity
from moe_jax.files.limits import FULL
from moe_jax.files.lock import locked
from moe_jax.journal.reading import CONFIG, FORMAT_FIELD, METRICS, SUMMARY, read_config, read_summary
from moe_jax.tasks.results import DATA, check_values

LOCK = "train.lock"
FOLDERS = ("checkpoints", "tensorboard", "tensorboard/hparams")  # that every run writes to
ORIGIN = "origin"  # in config.json and summary.json: where the weights came from that a run began with
FORMAT = 2  # to be raised whenever checkpoints get other names; a config.json that has none is of format 1


class Home:
    """A work directory that this process has for itself; see `own`."""

    def __init__(self, workdir: Path):
        self._workdir = workdir
        self._inode = self._find()

    def check(self) -> None:
        """Raises MachineError where the directory has been renamed, deleted or replaced since."""
        if self._find() != self._inode:
            raise MachineError(
                f"--workdir={self._workdir} is not the directory any more that the run began in (it was renamed, "
                "deleted or replaced): put it back, and the same command goes on from its newest checkpoint"
            )

    def _find(self) -> tuple[int, int] | None:
        try:
            stat = self._workdir.stat()
        except OSError:
            return None
        return stat.st_dev, stat.st_ino


@contextlib.contextmanager
def own(workdir: Path, first_process: bool = True) -> Iterator[Home]:
    """Keeps other runs out of `workdir`, which is made where there is none; those who only read it are not kept out.

    Of the processes of one run the first has the lock. Raises ConfigError, which names the process, where another run
    has it, and where the directory cannot be written.
    """
    make_writable(workdir)
    with contextlib.ExitStack() as stack:
        if first_process:
            try:
                stack.enter_context(locked(workdir / LOCK, wait=False))
            except BlockingIOError as held:  # an OSError too, but the lock works
                holder = str(held) or "an unknown process"
                raise ConfigError(
                    f"--workdir={workdir}: another run trains here ({holder}): wait for its end, "
                    "stop it, or choose another directory"
                ) from None
            except OSError as error:
                refuse_full(error, workdir)
                raise ConfigError(
                    f"--workdir={workdir}: {LOCK} cannot be locked ({error.strerror}): remove it, or choose another "
                    "directory"
                ) from None
        yield Home(workdir)


def prepare(workdir: Path, run: RunConfig, others: Sequence[str] = (), first_process: bool = True) -> None:
    """Checks that `run` may write into `workdir` and its folders, `others` among them; what they hold stays as it is.

    Folders are tried by the first process of a run alone: what it makes for a moment is in the way of the others.

    Raises:
      ConfigError: a folder cannot be made or written, or the directory belongs to a run with another identity (named
        field by field), or was written in another `FORMAT`.
    """
    if (workdir / CONFIG).exists():
        check_identity(workdir, run)
    for name in (*FOLDERS, *others) if first_process else ():
        _probe(workdir / name)
    for name in (CONFIG, METRICS, SUMMARY):
        if (workdir / name).exists() and not ((workdir / name).is_file() and os.access(workdir / name, os.W_OK)):
            raise ConfigError(f"--workdir={workdir}: {name} cannot be written: make it writable, or remove it")


def check_data(workdir: Path, sha256: str) -> None:
    """Raises ConfigError where the run in `workdir` was started on other data, since a file or Python has changed."""
    before = _read_config(workdir).get(DATA) if (workdir / CONFIG).exists() else None
    if before not in (None, sha256):
        raise ConfigError(
            f"--workdir={workdir}: the data of data.source is not what the run was started on ({DATA} was {before}, is "
            f"{sha256}), and held-out data may have been trained on: put it back, or choose another directory"
        )


def _probe(folder: Path) -> None:
    """Raises ConfigError where `folder` could not be made or written; if there is none, there still is none."""
    if not os.path.lexists(folder.parent):
        return  # it will be made, in a parent that was probed too
    there = os.path.lexists(folder)
    make_writable(folder)
    if not there:
        folder.rmdir()


def make_writable(workdir: Path, flag: str = "--workdir") -> None:
    """Makes a work directory or a folder of one, where there is none; raises ConfigError where it cannot be written."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".writable_{os.getpid()}"
        probe.touch()
        probe.unlink(missing_ok=True)  # another thread's
    except OSError as error:
        refuse_full(error, workdir)
        raise ConfigError(f"{flag}={workdir} cannot be written ({error.strerror}): choose another directory") from None


def refuse_full(error: OSError, workdir: Path) -> None:
    """Raises MachineError where the reason is a full disk, or a quota that is used up."""
    if error.errno in FULL:
        raise MachineError(f"--workdir={workdir} has no room left ({error.strerror}): make room") from None


def claim(workdir: Path, run: RunConfig, sha256: str) -> None:
    """Makes a prepared `workdir` the home of `run` on the data of that hash.

    It is called once the run can start, so that a mistyped data.source, say, can be corrected without another work
    directory.
    """
    write_json(workdir / CONFIG, {FORMAT_FIELD: FORMAT, **flatten(run), **origin(workdir), DATA: sha256})


def claim_for_weights(workdir: Path, run: RunConfig, origin: str) -> None:
    """Makes `workdir`, which has a checkpoint 0 of weights from `origin`, the home of any run of the same model.

    The first training that starts there claims it for itself.
    """
    write_json(workdir / CONFIG, {FORMAT_FIELD: FORMAT, **flatten(run), ORIGIN: origin})


def origin(workdir: Path) -> dict[str, str]:
    """{"origin": where the weights came from that the run began with}, or {} for a run that drew them."""
    written = _read_config(workdir).get(ORIGIN) if (workdir / CONFIG).exists() else None
    return {} if written is None else {ORIGIN: written}


def known_origin(workdir: Path) -> str:
    """Where the weights of checkpoint 0 came from. Raises ConfigError where an import was killed before it said so."""
    came_from = origin(workdir)
    if not came_from:
        raise ConfigError(
            f"--workdir={workdir} has weights of an import that did not end, and it is not known of which model: "
            "import again, or choose another directory"
        )
    return came_from[ORIGIN]


def refuse_lost_weights(workdir: Path) -> None:
    """Raises ConfigError where a run that began with given weights has lost its checkpoints: others would be drawn."""
    if came_from := origin(workdir):
        raise ConfigError(
            f"--workdir={workdir} began with weights from {came_from[ORIGIN]} and has no checkpoint any more: put "
            "checkpoints/ back, or begin in another directory"
        )


def write_summary(workdir: Path, content: Mapping[str, Any]) -> None:
    """Writes summary.json: the run is finished."""
    write_json(workdir / SUMMARY, content)


def is_finished(workdir: Path, steps: int) -> bool:
    """Whether `workdir` has a whole summary.json, of a run of `steps` steps."""
    try:
        summary = read_summary(workdir)
        check_values(summary)
        return summary["steps"] == steps
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes all of `content` or, if the process dies meanwhile, leaves what was there.

    JSON knows no NaN and no infinities: they are written as null.
    """
    draft = path.with_name(f"{path.name}.partial")
    try:
        draft.write_text(json.dumps(_finite(content), indent=2, allow_nan=False) + "\n")
    except OSError as error:  # of a full disk, which does not say where
        with contextlib.suppress(OSError):
            draft.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None
    os.replace(draft, path)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_identity(workdir: Path, run: RunConfig) -> None:
    """Raises ConfigError unless `workdir` holds a run that trains the same thing as `run`, or weights of its model."""
    before = _read_run(workdir)
    untrained = ORIGIN in before and DATA not in before
    fields = architecture if untrained else identity
    now = json.loads(json.dumps(fields(run)))  # tuples as lists, as they come back from the file
    # A field that the file lacks is younger than the run: its default means what the code did before it was there.
    before = json.loads(json.dumps(fields(RunConfig()))) | before
    differing = [f"{name} was {before[name]!r}, is {value!r}" for name, value in now.items() if before[name] != value]
    if differing:
        held = f"weights of another model, from {before[ORIGIN]}" if untrained else "another run"
        raise ConfigError(
            f"--workdir={workdir} holds {held} ({'; '.join(differing)}): choose another directory, or set the fields "
            "back"
        )


def read_fields(workdir: Path) -> dict[str, Any]:
    """The fields of the run in `workdir`, dotted, as far as it had them. Raises ConfigError like `check_identity`."""
    known = flatten(RunConfig())
    return {name: value for name, value in _read_run(workdir).items() if name in known}


def _read_run(workdir: Path) -> dict[str, Any]:
    if not (workdir / CONFIG).exists():
        raise ConfigError(f"--workdir={workdir} holds no run ({CONFIG} is missing): train one there first")
    content = _read_config(workdir)
    _check_format(workdir, content.get(FORMAT_FIELD, 1))
    return content


def _check_format(workdir: Path, written: Any) -> None:
    if written != FORMAT:
        release = "a newer release" if isinstance(written, int) and written > FORMAT else "an older release"
        raise ConfigError(
            f"--workdir={workdir} was written by {release} of moe_jax (format {written}, now {FORMAT}), whose "
            "checkpoints have other parameter names: choose another directory, or finish the run with that release"
        )


def _read_config(workdir: Path) -> dict[str, Any]:
    try:
        config = read_config(workdir)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--workdir={workdir}: {CONFIG} cannot be read ({error}), so it is unknown which run lies there: put the "
            "file back, or choose another directory"
        ) from None
    if not isinstance(config, dict):
        raise ConfigError(f"--workdir={workdir}: {CONFIG} holds no configuration: choose another directory")
    return config
