"""Everything a run stands on, built once and in order: data, mesh, model, optimiser, compiled steps."""

import dataclasses
import time
from collections.abc import Callable, Iterator

import jax
import optax
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from moe_jax.config.rules import ConfigError
from moe_jax.config.schema import RunConfig
from moe_jax.models.attention.kernels import check_platform
from moe_jax.moe.sums import Sums
from moe_jax.optim.optimizer import make_optimizer
from moe_jax.parallel.batch import Part, part_of
from moe_jax.parallel.compiler_options import compiler_options
from moe_jax.parallel.mesh import TOKEN_AXES, make_mesh
from moe_jax.parallel.sharding import spec_of
from moe_jax.resolve.counting import count
from moe_jax.tasks.registry import task_of
from moe_jax.tasks.task import Batch, Dataset, Task
from moe_jax.train.evaluation import Evaluation, evaluate
from moe_jax.train.state import Model, TrainState, Variables, build_model, state_shapes
from moe_jax.train.step import StepMetrics, make_eval_step, make_train_step


@dataclasses.dataclass(frozen=True)
class Setup:
    """A run before its first step."""

    task: Task
    data: Dataset
    mesh: Mesh
    model: Model
    optimizer: optax.GradientTransformation
    shapes: TrainState  # of the state, with shardings
    started: float  # time.perf_counter() when the set-up began

    @property
    def run(self) -> RunConfig:
        """What is trained."""
        return self.task.run

    @property
    def part(self) -> Part:
        """What this process has of each global batch."""
        return part_of(self.mesh, self.run.data.batch_size)

    def place(self, batch: Batch) -> Batch:
        """This process's part of a global batch, on the mesh."""
        return jax.tree.map(lambda rows: self.part.place(rows, self.mesh), batch)

    def compile_train_step(self) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]:
        """The training step for this mesh, compiled ahead of its first call; it donates the state."""
        start = time.perf_counter()
        options = compiler_options(self.mesh.devices.flat[0].platform)
        compiled = lower_train_step(self.task, self.mesh).compile(compiler_options=options or None)
        logging.info("Compiled the training step in %.1f s", time.perf_counter() - start)
        return compiled

    def compile_eval_step(self) -> Callable[[Variables, Batch], tuple[PyTree, tuple[Sums, ...]]]:
        """The evaluation step, compiled at its first call."""
        return jax.jit(make_eval_step(self.mesh, self.model, self.data))

    def evaluate(self, eval_step: Callable, variables: Variables, batches: int) -> Evaluation:
        """How well the model does on the first `batches` held-out batches (0: all)."""
        return evaluate(eval_step, variables, self._heldout(batches), self.data)

    def _heldout(self, batches: int) -> Iterator[Batch]:
        for batch in self.data.heldout_batches(batches, *self.part.number):
            yield self.place(batch)


def lower_train_step(task: Task, mesh: Mesh) -> jax.stages.Lowered:
    """The training step that donates its state, from shapes alone: it needs no data and allocates nothing."""
    model = build_model(task, mesh)
    optimizer = make_optimizer(task.run.train, model.decayed)
    state = state_shapes(model, optimizer, mesh)
    step = make_train_step(task, mesh, model, optimizer)
    outputs = jax.tree.map(lambda leaf: leaf.sharding, state), NamedSharding(mesh, PartitionSpec())
    return jax.jit(step, donate_argnums=0, out_shardings=outputs).lower(state, batch_on_mesh(task, mesh))


def batch_on_mesh(task: Task, mesh: Mesh) -> Batch:
    """Shapes and shardings of a global batch."""
    sharding = NamedSharding(mesh, spec_of(mesh, TOKEN_AXES))
    placed = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return jax.tree.map(placed, task.batch_shapes())


def set_up(run: RunConfig) -> Setup:
    """Builds what `run` describes; nothing is compiled or allocated on devices yet.

    Raises ValueError (one line) for data that cannot be read, and for an attention kernel that does not run here.
    """
    started = time.perf_counter()
    check_platform(run.attention.kernel, jax.default_backend())
    task = task_of(run)
    mesh = make_mesh(run.mesh)
    model = build_model(task, mesh)
    optimizer = make_optimizer(run.train, model.decayed)
    data = task.open()
    return Setup(task, data, mesh, model, optimizer, state_shapes(model, optimizer, mesh), started)


def check_memory(run: RunConfig, memory: float) -> None:
    """Raises ConfigError where the weights, or the input of the first layer, alone take more than so many bytes, of all
    devices: XLA would abort, or the machine swap.
    """
    parameters, itemsize = count(run).total_params, 8 if run.model.dtype == "float64" else 4
    tokens = run.data.batch_size // run.train.accumulate * run.data.sequence_length
    needs = {
        f"the weights of {parameters:,} parameters": parameters * itemsize,
        f"the embeddings of the {tokens:,} tokens of a micro-batch": tokens * run.model.d_model * 2,
    }
    remedies = (
        "lower model.d_model, model.vocab_size or moe.num_experts",
        "lower data.batch_size or data.sequence_length, or raise train.accumulate",
    )
    for (what, size), remedy in zip(needs.items(), remedies, strict=True):
        if size > memory:
            raise ConfigError(
                f"{what} take {size / 1e9:,.0f} GB, and the devices of this run have {memory / 1e9:,.0f} GB: {remedy}, "
                "or take more devices"
            )
