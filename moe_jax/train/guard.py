"""Keeps a run among the finite numbers: what the train step skipped is counted, told, and in the end refused."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, Bool, PyTree

from moe_jax.config.rules import DivergedError

NAMED = 3  # weights that a message lists


class Skipped(NamedTuple):
    """A step whose update was skipped."""

    step: int
    position: int  # of its batch in the data
    names: str  # of what was not finite

    def __str__(self) -> str:
        return f"step {self.step} (batch {self.position} of the data): not finite is {self.names}"


class Guard:
    """Reads what steps report of being finite, one step late, so that the device never waits for the host."""

    def __init__(self, params: PyTree, max_skipped: int, skipped: int = 0, in_a_row: int = 0):
        """`params` has the structure of the weights; up to `max_skipped` updates in a row may be skipped.

        `skipped` and `in_a_row` are the counts of earlier lives of the run.
        """
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        weights = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
        self._names = ["the loss", *(f"the gradient of {name}" for name in weights)]
        self._max_skipped = max_skipped
        self._unread: tuple[int, int, Bool[Array, 1 + leaves]] | None = None
        self.skipped, self.in_a_row = skipped, in_a_row

    def add(self, step: int, position: int, finite: Bool[Array, " checked"]) -> None:
        """Takes the report of a step that was just started, and reads that of the one before. Raises as `read` does."""
        self.read()
        self._unread = step, position, finite

    def read(self) -> None:
        """Waits for the newest report. Raises DivergedError where one update more was skipped than may be in a row."""
        if self._unread is None:
            return
        step, position, report = self._unread
        self._unread = None
        finite = np.asarray(report)
        if finite.all():
            self.in_a_row = 0
            return
        self.skipped += 1
        self.in_a_row += 1
        skipped = Skipped(step, position, _listed([self._names[i] for i in np.flatnonzero(~finite)]))
        if self.in_a_row > self._max_skipped:
            raise DivergedError(
                f"training has diverged: {self.in_a_row} updates in a row would not have been finite, more than "
                f"train.max_skipped={self._max_skipped}; {skipped}. All checkpoints are finite: lower "
                "train.learning_rate, or raise train.max_skipped to go past these batches"
            )
        logging.warning("Skipped the update of %s (%d in a row)", skipped, self.in_a_row)


def check_finite(params: PyTree) -> None:
    """Raises DivergedError, which names them, where weights are not finite."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    finite = np.asarray(_are_finite([leaf for _, leaf in leaves]))
    if not finite.all():
        names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
        listed = _listed([name for name, is_finite in zip(names, finite, strict=True) if not is_finite])
        raise DivergedError(
            f"training has diverged: weights are not finite ({listed}); no checkpoint is made of them: lower "
            "train.learning_rate"
        )


@jax.jit
def _are_finite(leaves: list[Array]) -> Bool[Array, " leaves"]:
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves])


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
