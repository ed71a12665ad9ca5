"""Everything a run stands on, built once and in order: mesh, corpus, model, optimiser, compiled steps."""

import dataclasses
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
import optax
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from moe_jax.config.schema import RunConfig
from moe_jax.data import Batch, Corpus, heldout_batches, load_corpus
from moe_jax.optim.optimizer import make_optimizer
from moe_jax.parallel.compiler_options import compiler_options
from moe_jax.parallel.mesh import TOKEN_AXES, make_mesh
from moe_jax.parallel.sharding import spec_of
from moe_jax.train.evaluation import Evaluation, evaluate
from moe_jax.train.state import Model, TrainState, Variables, abstract_state, build_model
from moe_jax.train.step import EvalSums, StepMetrics, make_eval_step, make_train_step


@dataclasses.dataclass(frozen=True)
class Setup:
    """A run before its first step."""

    run: RunConfig
    mesh: Mesh
    corpus: Corpus
    model: Model
    optimizer: optax.GradientTransformation
    abstract: TrainState
    started: float  # time.perf_counter() when the set-up began

    def place(self, batch: Batch) -> Batch:
        """This process's sequences as part of the global batch on the mesh."""
        tokens = NamedSharding(self.mesh, spec_of(self.mesh, TOKEN_AXES))
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(tokens, x), batch)

    def compile_train_step(self) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]:
        """The training step for this mesh, compiled ahead of its first call; it donates the state."""
        start = time.perf_counter()
        options = compiler_options(self.mesh.devices.flat[0].platform)
        compiled = lower_train_step(self.run, self.mesh).compile(compiler_options=options or None)
        logging.info("Compiled the training step in %.1f s", time.perf_counter() - start)
        return compiled

    def compile_eval_step(self) -> Callable[[Variables, Batch], EvalSums]:
        """The evaluation step, compiled at its first call."""
        return jax.jit(
            make_eval_step(
                self.run, self.mesh, self.model, len(self.corpus.domains), self.corpus.tokenizer.bytes_per_token
            )
        )

    def evaluate(self, eval_step: Callable, variables: Variables, batches: int) -> Evaluation:
        """Held-out loss over the first `batches` held-out batches (0: all)."""
        return evaluate(eval_step, variables, self._heldout(batches), self.corpus.domains)

    def _heldout(self, batches: int) -> Iterator[Batch]:
        size = self.run.data.batch_size
        for batch in heldout_batches(self.corpus, size, batches, jax.process_index(), jax.process_count()):
            yield self.place(batch)


def lower_train_step(run: RunConfig, mesh: Mesh) -> jax.stages.Lowered:
    """The training step that donates its state, from shapes alone: needs no corpus and allocates nothing."""
    model = build_model(run, mesh)
    optimizer = make_optimizer(run.train, model.decayed)
    state = abstract_state(model, optimizer, mesh)
    step = make_train_step(run, mesh, model, optimizer)
    outputs = jax.tree.map(lambda leaf: leaf.sharding, state), NamedSharding(mesh, PartitionSpec())
    return jax.jit(step, donate_argnums=0, out_shardings=outputs).lower(state, abstract_batch(run, mesh))


def abstract_batch(run: RunConfig, mesh: Mesh) -> Batch:
    """Shapes and shardings of a global batch."""
    size, length = run.data.batch_size, run.data.sequence_length
    tokens = NamedSharding(mesh, spec_of(mesh, TOKEN_AXES))
    shape = lambda *dims: jax.ShapeDtypeStruct(dims, np.int32, sharding=tokens)
    return Batch(shape(size, length), shape(size, length), shape(size, length), shape(size))


def set_up(run: RunConfig) -> Setup:
    """Builds what `run` describes; nothing is compiled or allocated on devices yet.

    Raises ValueError (one line) for data that cannot be read.
    """
    started = time.perf_counter()
    if run.model.attention == "cudnn" and jax.default_backend() != "gpu":
        raise ValueError("model.attention='cudnn' needs an NVIDIA GPU and JAX sees none: use model.attention='xla'")
    corpus = load_corpus(run.data, run.model.vocab_size, run.seed)
    mesh = make_mesh(run.mesh)
    model = build_model(run, mesh)
    optimizer = make_optimizer(run.train, model.decayed)
    return Setup(run, mesh, corpus, model, optimizer, abstract_state(model, optimizer, mesh), started)
