"""Checkpoints: the whole state of a run and the position in its data, written asynchronously by Orbax."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import grain
import orbax.checkpoint as ocp
from absl import logging

from moe_jax.config.schema import CheckpointConfig
from moe_jax.train.state import TrainState

args = ocp.args


class Checkpoints:
    """WORKDIR/checkpoints/STEP/{state,data}. A context manager: leaving it waits for what is still being written."""

    def __init__(self, workdir: Path, config: CheckpointConfig | None = None):
        """Without a `config`: for reading only."""
        self._directory = workdir.absolute() / "checkpoints"
        self._writes = config is not None
        options = ocp.CheckpointManagerOptions(max_to_keep=config.keep if config else None, create=self._writes)
        self._manager = ocp.CheckpointManager(self._directory, options=options, item_names=("state", "data"))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def latest_step(self) -> int | None:
        """The newest step on disk."""
        return self._manager.latest_step()

    def save(self, state: TrainState, batches: grain.DatasetIterator) -> None:
        """Starts writing the state after `state.step` steps; nothing if that step is on disk already."""
        step = int(state.step)
        if step == self.latest_step():
            return
        self._manager.save(
            step,
            args=args.Composite(
                state=args.StandardSave(state._asdict()), data=grain.checkpoint.CheckpointSave(batches)
            ),
        )

    def restore(self, shapes: TrainState, batches: grain.DatasetIterator | None = None) -> TrainState | None:
        """The newest state that can be read, in the shardings of `shapes`; `batches` is moved to its position.

        Where a checkpoint cannot be read, a warning says so and the one before it is tried. If that one is good, a run
        that writes here renames the other to STEP.damaged. None means that there is no checkpoint at all. Raises
        ValueError when none of those there can be read; they stay as they are, since it may not be their fault.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for tried, step in enumerate(steps):
            try:
                state = self._restore_step(step, shapes, batches)
            except Exception as error:
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                logging.warning(
                    "Checkpoint %d in %s cannot be read (%s); trying the one before", step, self._directory, reason
                )
            else:
                self._set_aside(steps[:tried])
                return state
        if steps:
            raise ValueError(
                f"none of the checkpoints {steps} in {self._directory} can be read (see above; nothing was deleted): "
                "choose another --workdir to start over"
            )
        return None

    def _restore_step(self, step: int, shapes: TrainState, batches: grain.DatasetIterator | None) -> TrainState:
        items = {"state": args.StandardRestore(shapes._asdict())}
        if batches is not None:
            items["data"] = grain.checkpoint.CheckpointRestore(batches)
        restored = self._manager.restore(step, args=args.Composite(**items))
        return TrainState(**restored["state"])

    def _set_aside(self, damaged: Sequence[int]) -> None:
        if not damaged or not self._writes:
            return
        for step in damaged:
            names = itertools.chain([f"{step}.damaged"], (f"{step}.damaged.{n}" for n in itertools.count(2)))
            free = next(name for name in names if not (self._directory / name).exists())
            (self._directory / str(step)).rename(self._directory / free)
        self._manager.reload()
