"""Checkpoints: the whole state of a run, on its devices and beside them, written asynchronously by Orbax.

Each carries the digests of its files, which are compared when it is restored: the arrays themselves have no checksums,
so that a flipped bit would otherwise become other weights without a word.
"""

import contextlib
import itertools
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from absl import logging

from moe_jax.config.rules import MachineError
from moe_jax.config.schema import CheckpointConfig
from moe_jax.files.digests import damage, has_digests, write_digests
from moe_jax.journal.reading import FORMAT_FIELD
from moe_jax.journal.workdir import FORMAT
from moe_jax.train.state import TrainState, Variables

args = ocp.args
DRAFT = "orbax-checkpoint-tmp"  # what the name of a checkpoint that is not whole yet contains
WEIGHTS_ONLY = "weights_only"  # in the data of a checkpoint that has no more: which of them it has
RESTARTS = 10  # of a restore beside a run that keeps removing its older checkpoints
OS_ERROR = re.compile(r"(?:os_error_code='|OS error )(\d+)")  # how TensorStore words a failure of the system


class HostState(NamedTuple):
    """What a run keeps outside of its devices."""

    position: int  # global batches that it has taken
    skipped: int = 0  # updates that were skipped since they were not finite
    in_a_row: int = 0  # those of them right before now


class Restored(NamedTuple):
    """What a checkpoint holds."""

    state: TrainState  # of a checkpoint of weights alone the rest is left as shapes
    host: HostState
    weights_only: bool = False


class Checkpoints:
    """WORKDIR/checkpoints/STEP/{state,data}. A context manager: leaving it waits for what is still being written."""

    def __init__(self, workdir: Path, config: CheckpointConfig | None = None):
        """Without a `config`: for reading only."""
        self._directory = workdir.absolute() / "checkpoints"
        self._config = config
        self._saving: int | None = None  # the step that may still be being written
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        writes = self._config is not None
        if writes and jax.process_index() == 0 and self._directory.exists():
            for draft in self._directory.glob(f"*{DRAFT}*"):  # of a run that was killed, or of a full disk
                shutil.rmtree(draft, ignore_errors=True)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._config.keep if self._config else None,
            create=writes,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_digests),
        )
        return ocp.CheckpointManager(self._directory, options=options, item_names=("state", "data"))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception) -> None:
        try:
            self.wait()
        except MachineError as error:
            if kind is None:
                raise
            logging.warning("%s", error)
        finally:
            self._close()

    def latest_step(self) -> int | None:
        """The newest step on disk."""
        return self._manager.latest_step()

    def save(self, state: TrainState, host: HostState) -> None:
        """Starts writing the state after `state.step` steps; nothing if that step is on disk already.

        Raises MachineError, in one line, where the system refuses. Where it has refused the one before, only a warning
        says so: this one takes its place.
        """
        self._wait_or_warn()
        step = int(state.step)
        if step == self.latest_step():
            return
        self._begin(step, state._asdict(), host._asdict())

    def save_weights(self, weights: Variables) -> None:
        """Writes the weights that a run begins with, and waits until they are there.

        A run that restores them draws what else its state needs. Raises MachineError, in one line, where the system
        refuses.
        """
        parts = [name for name, tree in weights._asdict().items() if jax.tree.leaves(tree)]
        self._begin(int(weights.step), weights._asdict(), HostState(position=0)._asdict() | {WEIGHTS_ONLY: parts})
        self.wait()

    def _begin(self, step: int, state: dict[str, Any], data: dict[str, Any]) -> None:
        stored = args.JsonSave({FORMAT_FIELD: FORMAT, **data})
        with self._failures(step):
            self._saving = step
            self._manager.save(step, args=args.Composite(state=args.PyTreeSave(state), data=stored))

    def poll(self) -> None:
        """Warns where what was begun has failed meanwhile. It never waits."""
        if self._saving is not None and not self._manager.is_saving_in_progress():
            self._wait_or_warn()

    def _wait_or_warn(self) -> None:
        try:
            self.wait()
        except MachineError as error:
            logging.warning("%s: training goes on, and the next checkpoint takes its place", error)

    def wait(self) -> None:
        """Waits for what is being written. Raises MachineError, in one line, where it could not be."""
        if self._saving is not None:
            with self._failures(self._saving):
                self._manager.wait_until_finished()
            self._saving = None

    def restore(self, shapes: TrainState) -> Restored | None:
        """The newest state that is as it was written, in the shardings of `shapes`; None without any checkpoint.

        Of a checkpoint of weights alone, what it lacks stays as in `shapes`.

        Where a checkpoint is damaged, a warning says so and the one before it is tried. If that one is good, a run that
        writes here renames the other to STEP.damaged. Raises ValueError when none of those there can be read; they stay
        as they are, since it may not be their fault.
        """
        return self._newest(lambda step: self._read(step, shapes))

    def restore_weights(self, shapes: Variables) -> Variables | None:
        """Like `restore`, but only what a forward pass reads: of the optimiser's state nothing is read."""
        return self._newest(lambda step: self._read_weights(step, shapes))

    def _newest(self, read: Callable[[int], Any]) -> Any:
        for _ in range(RESTARTS):
            steps = sorted(self._manager.all_steps(), reverse=True)
            for tried, step in enumerate(steps):
                restored = self._try(step, read)
                if not isinstance(restored, str):
                    self._set_aside(steps[:tried])
                    return restored
                if not (self._directory / str(step)).exists():  # the run that writes here has just removed it
                    break
                logging.warning(
                    "Checkpoint %d in %s cannot be read (%s); trying the one before", step, self._directory, restored
                )
            else:
                break
            self._manager.reload()
        if steps:
            raise ValueError(
                f"none of the checkpoints {steps} in {self._directory} can be read (see above; nothing was deleted): "
                "choose another --workdir to start over"
            )
        return None

    def _try(self, step: int, read: Callable[[int], Any]) -> Any:
        """The checkpoint, or in one phrase why it cannot be read."""
        directory = self._directory / str(step)
        try:
            reason = damage(directory) if has_digests(directory) else None
            return reason or read(step)
        except Exception as error:
            return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

    def _read(self, step: int, shapes: TrainState) -> Restored:
        data = self._read_data(step)
        parts = data.pop(WEIGHTS_ONLY, None)
        parts = list(Variables._fields) if parts is True else parts
        if parts is None:
            return Restored(TrainState(**self._read_state(step, shapes._asdict())), HostState(**data))
        there = {name: tree for name, tree in shapes.variables._asdict().items() if name in parts}
        weights = self._read_state(step, there, some=True)
        return Restored(shapes._replace(**weights), HostState(**data), weights_only=True)

    def _read_weights(self, step: int, shapes: Variables) -> Variables:
        parts = self._read_data(step).get(WEIGHTS_ONLY)
        if isinstance(parts, list) and jax.tree.leaves(shapes.balance_bias) and "balance_bias" not in parts:
            raise ValueError("it has weights without balance biases: train a step with them first")
        return Variables(**self._read_state(step, shapes._asdict()))

    def _read_data(self, step: int) -> dict[str, Any]:
        # Before digests were written, Grain kept the position in its own form. It is the step: each takes one batch.
        if not has_digests(self._directory / str(step)):
            return {"position": step}
        data = self._manager.restore(step, args=args.Composite(data=args.JsonRestore()))["data"]
        written = data.pop(FORMAT_FIELD)
        if written != FORMAT:
            raise ValueError(f"it has format {written}, this release reads {FORMAT}")
        return data

    def _read_state(self, step: int, shapes: dict[str, Any], some: bool = False) -> dict[str, Any]:
        """The arrays of `shapes`. Raises ValueError where one is missing; with `some` it stays a shape."""
        wanted = args.PyTreeRestore(
            shapes, restore_args=ocp.checkpoint_utils.construct_restore_args(shapes), partial_restore=True
        )
        state = self._manager.restore(step, args=args.Composite(state=wanted))["state"]
        leaves = jax.tree_util.tree_leaves_with_path(state)
        missing = [jax.tree_util.keystr(path) for path, leaf in leaves if isinstance(leaf, jax.ShapeDtypeStruct)]
        if missing and not some:
            raise ValueError(f"it lacks {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else ""))
        return state

    def _set_aside(self, damaged: Sequence[int]) -> None:
        if not damaged or self._config is None:
            return
        for step in damaged:
            names = itertools.chain([f"{step}.damaged"], (f"{step}.damaged.{n}" for n in itertools.count(2)))
            free = next(name for name in names if not (self._directory / name).exists())
            (self._directory / str(step)).rename(self._directory / free)
        self._manager.reload()

    def _write_digests(self) -> None:
        """Writes the digests of the checkpoint that is whole but for its name. Orbax calls this before it gives it."""
        if jax.process_index() == 0:
            for draft in self._directory.glob(f"{self._saving}.{DRAFT}*"):
                write_digests(draft, below=("state", "data"))

    @contextlib.contextmanager
    def _failures(self, step: int) -> Iterator[None]:
        """Turns a failure of the file system into MachineError, and starts anew with a manager that has not failed."""
        try:
            yield
        except Exception as error:
            reason = system_failure(error)
            if reason is None:
                raise
            self._saving = None
            self._close()
            with contextlib.suppress(OSError):  # it may be gone
                self._manager = self._open()
            raise MachineError(f"checkpoint {step} could not be written to {self._directory} ({reason})") from None

    def _close(self) -> None:
        with contextlib.suppress(Exception):  # what could not be written has been reported
            self._manager.close()


def system_failure(error: BaseException | None) -> str | None:
    """What the operating system refused, in its own words, where that is behind an error; else None."""
    while error is not None:
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        if match := OS_ERROR.search(str(error)):
            return os.strerror(int(match[1]))
        error = error.__cause__ or error.__context__
    return None
