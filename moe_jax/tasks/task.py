"""What the trainer knows of what it trains: this contract, and nothing else.

A `Task` follows from the configuration alone, so that its step can be compiled without data; a `Dataset` is opened from
the task's own data. Batches are trees of arrays whose first dimension is sharded over the mesh's token axes.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

from flax import nnx
from jaxtyping import Array, Float, Int, Key, PyTree

from moe_jax.config.schema import RunConfig
from moe_jax.moe.sums import Sums

Batch: TypeAlias = Any  # a tree of arrays [B, ...]


@runtime_checkable
class Task(Protocol):
    """What a batch is, how the model reads it, and which sums over the mesh are its loss."""

    unit: ClassVar[str]  # in which data is counted: speed is logged as train/UNITs_per_second

    @property
    def run(self) -> RunConfig:
        """The configuration that it follows from."""

    @property
    def units_per_step(self) -> int:
        """Units in a global batch, padding included."""

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """The model, with weights that `rngs` draw."""

    def batch_shapes(self) -> Batch:
        """The shapes of a global batch, as ShapeDtypeStructs."""

    def count_targets(self, batch: Batch) -> Int[Array, ""]:
        """Targets in a whole batch: the sum of `train_loss` over all devices is divided by it."""

    def train_loss(
        self, model: Any, batch: Batch, step: Int[Array, ""], key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[Sums, ...]]:
        """The loss summed over this device's targets, and its routing sums by segment. Inside `shard_map`."""

    def open(self) -> "Dataset":
        """The data. Raises ValueError, in one line, for what cannot be read."""


@runtime_checkable
class Dataset(Protocol):
    """Batches, and what a held-out one is worth."""

    @property
    def sha256(self) -> str:
        """Identifies what is trained on and held out: runs that agree in it compare."""

    def train_batches(self, process_index: int = 0, process_count: int = 1) -> "TrainBatches":
        """Endless batches of this process."""

    def epochs(self, steps: int) -> Mapping[str, float]:
        """How many times each source has been gone through after so many steps, by the source's name."""

    def heldout_batches(self, batches: int, process_index: int = 0, process_count: int = 1) -> Iterator[Batch]:
        """The first `batches` held-out batches of this process; 0: all."""

    def eval_sums(self, model: Any, batch: Batch, step: Int[Array, ""]) -> tuple[PyTree, tuple[Sums, ...]]:
        """Sums over this device's held-out targets, and its routing sums by segment. Inside `shard_map`."""

    def scores(self, sums: PyTree) -> "Scores":
        """What the sums over all held-out batches amount to, as NumPy arrays. Raises ValueError without a target."""

    def baselines(self) -> Mapping[str, Mapping[str, Any]]:
        """Scores that need no model: {"baselines_bits_per_byte": {"unigram": 4.7, ...}}, say."""

    def table(self, scores: "Scores") -> str:
        """The scores beside the baselines, to be printed."""


@runtime_checkable
class TrainBatches(Protocol):
    """An iterator over batches whose position can be saved and set."""

    position: int  # global batches handed out, the same on every process

    def __next__(self) -> Batch:
        """This process's part of the next global batch."""

    def seek(self, position: int) -> None:
        """The next batch will be that of `position`, counted from 0."""


@dataclasses.dataclass(frozen=True)
class Scores:
    """How well a model does on held-out data. One of the scores is `loss`: lower is better, and runs compare by it."""

    overall: dict[str, float]  # {"loss": 1.3, ...}
    by_domain: dict[str, dict[str, float]]  # {"loss": {"code": 1.2, ...}, ...}; only domains that have held-out data
    counted: dict[str, int]  # what was scored: {"tokens": 32768}
    summary: str  # one phrase for the terminal
