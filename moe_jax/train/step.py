"""One training step and one evaluation step: the model inside `shard_map`, everything else around it under `jit`."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Key, PyTree

from moe_jax.config.schema import RunConfig
from moe_jax.moe.losses import AuxiliaryLosses, auxiliary_losses, weighted
from moe_jax.moe.measures import Stats, max_violation, routing_stats
from moe_jax.moe.sums import Sums
from moe_jax.optim.optimizer import learning_rate
from moe_jax.parallel.collectives import sum_over
from moe_jax.parallel.mesh import TOKEN_AXES
from moe_jax.parallel.sharding import spec_of
from moe_jax.tasks.task import Batch, Dataset, Task
from moe_jax.train.biases import moved_biases
from moe_jax.train.state import Model, TrainState, Variables
from moe_jax.train.trainable import pick, put, trains_routers

NOISE = 2**31  # folded into the seed for noise, which must not repeat the draws of the initial weights
Counts = Sequence[Float[Array, "_M _A"]]  # choices of each expert, by segment


class StepMetrics(NamedTuple):
    """What a step reports; every figure covers the whole batch."""

    loss: Float[Array, ""]  # of the task: nats a token
    auxiliary: AuxiliaryLosses  # means over micro-batches
    grad_norm: Float[Array, ""]  # before clipping
    finite: Bool[Array, " checked"]  # whether the loss is, and the gradient of each weight; if not all, nothing moved
    learning_rate: Float[Array, ""]
    routing: tuple[Stats, ...]  # by segment; empty: a dense model
    max_violation_micro_batch: Float[Array, "M"] | None  # mean over the MaxVio of each micro-batch; None: a dense model
    max_violation_window: Float[Array, "M"] | None  # since the last multiple of log.every; None: a dense model


class Losses(NamedTuple):
    """The parts of the loss and the sums they came from."""

    task: Float[Array, ""]
    auxiliary: AuxiliaryLosses
    max_violation: Float[Array, "M"] | None
    sums: tuple[Sums, ...]  # by segment; empty: a dense model


def make_train_step(
    task: Task, mesh: Mesh, model: Model, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]:
    """A function to jit, donating the state. Batches are global, sharded over the token axes."""
    run = task.run
    gradients = jax.value_and_grad(_make_loss(task, mesh, model), has_aux=True)
    rate = learning_rate(run.train)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(state.seed), NOISE), state.step)
        targets = jnp.maximum(task.count_targets(batch), 1)
        trained = pick(state.params, model.trained)
        grads, losses = _over_micro_batches(
            functools.partial(gradients, trained), run.train.accumulate, state.variables, batch, targets, key
        )
        finite = _finite(losses.task, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, trained)
        window = _add_to_window(state, [sums["choices"] for sums in losses.sums], run.log.every)
        metrics = StepMetrics(
            loss=losses.task,
            auxiliary=losses.auxiliary,
            grad_norm=optax.global_norm(grads),
            finite=finite,
            learning_rate=jnp.asarray(rate(state.step)),
            routing=tuple(routing_stats(sums) for sums in losses.sums),
            max_violation_micro_batch=losses.max_violation,
            max_violation_window=_max_violation(window),
        )
        params = put(optax.apply_updates(trained, updates), state.params)
        biases = state.balance_bias
        if trains_routers(model.trained):
            biases = moved_biases(run, biases, losses.sums, state.step)
        new = TrainState(state.step + 1, state.seed, params, biases, opt_state, window)
        return _unless_skipped(jnp.all(finite), new, state), metrics

    return step


def make_eval_step(
    mesh: Mesh, model: Model, data: Dataset
) -> Callable[[Variables, Batch], tuple[PyTree, tuple[Sums, ...]]]:
    """A function to jit: the sums of `Dataset.eval_sums` over the whole batch."""

    def on_device(variables: Variables, batch: Batch):
        return sum_over(data.eval_sums(model.bind(variables), batch, variables.step), TOKEN_AXES)

    specs = _variable_specs(model), spec_of(mesh, TOKEN_AXES)
    return jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())


def _finite(loss: Float[Array, ""], grads: PyTree) -> Bool[Array, " checked"]:
    """Whether the loss is finite, and the sum of squares of each gradient, in the order of `jax.tree.leaves`."""
    squares = [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(grads)]
    return jnp.isfinite(jnp.stack([loss, *(square.astype(loss.dtype) for square in squares)]))


def _unless_skipped(finite: Bool[Array, ""], new: TrainState, old: TrainState) -> TrainState:
    """The new state after a finite step. After another one, weights, biases and moments are still the old ones, and
    what counts steps goes on: the step itself, the window of choices, the optimiser's schedules.
    """
    is_schedule = lambda node: getattr(node, "_fields", None) == ("count",)  # optax: of a rate, of a weight decay
    keep = lambda after, before: after if is_schedule(after) else jnp.where(finite, after, before)
    moved = lambda state: (state.params, state.balance_bias, state.opt_state)
    params, biases, opt_state = jax.tree.map(keep, moved(new), moved(old), is_leaf=is_schedule)
    return new._replace(params=params, balance_bias=biases, opt_state=opt_state)


def _make_loss(task: Task, mesh: Mesh, model: Model) -> Callable:
    """The loss of a micro-batch as a function of the weights that are trained (see `trainable.pick`) and of the
    following, with its parts as a second result: all variables, the micro-batch, its key, the targets of the whole
    step, the number of micro-batches, and the choices of each expert in the earlier ones (None: there are none).
    """
    run: RunConfig = task.run

    def on_device(variables: Variables, batch: Batch, key: Key[Array, ""]):
        return sum_over(task.train_loss(model.bind(variables), batch, variables.step, key), TOKEN_AXES)

    over_mesh = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(_variable_specs(model), spec_of(mesh, TOKEN_AXES), PartitionSpec()),
        out_specs=PartitionSpec(),
    )

    def loss(
        trained: PyTree,
        variables: Variables,
        batch: Batch,
        key: Key[Array, ""],
        step_targets: Array,
        micro_batches: int,
        before: Counts | None,
    ):
        summed, sums = over_mesh(variables._replace(params=put(trained, variables.params)), batch, key)
        share = lambda tree: jax.tree.map(lambda x: x / micro_batches, tree)
        auxiliary = share(auxiliary_losses(run.moe, sums, before))
        violation = share(_max_violation([part["choices"] for part in sums]))
        of_task = summed / step_targets
        return of_task + weighted(run.moe, auxiliary), Losses(of_task, auxiliary, violation, sums)

    return loss


def _over_micro_batches(
    gradients: Callable, micro_batches: int, variables: Variables, batch: Batch, targets: Array, key: Key[Array, ""]
) -> tuple[PyTree, Losses]:
    """Gradients and losses of the whole step, summed over its micro-batches.

    Each micro-batch takes every `micro_batches`-th sequence, so that each device keeps the sequences it has. Its loss
    counts by its share of the step's `targets`: the sum is that of one large batch.
    """
    if micro_batches == 1:
        (_, losses), grads = gradients(variables, batch, key, targets, 1, None)
        return grads, losses
    cut = lambda x: x.reshape(x.shape[0] // micro_batches, micro_batches, *x.shape[1:]).swapaxes(0, 1)
    parts = jax.tree.map(cut, batch), jnp.arange(micro_batches)

    def one(part: Batch, index: Array, before: Counts | None) -> tuple[PyTree, Losses]:
        noise = jax.random.fold_in(key, index)
        (_, losses), grads = gradients(variables, part, noise, targets, micro_batches, before)
        return grads, losses

    def add(total: tuple[PyTree, Losses], part: tuple[Batch, Array]):
        before = [sums["choices"] for sums in total[1].sums]
        return jax.tree.map(jnp.add, total, one(*part, before)), None

    shapes = jax.eval_shape(one, *jax.tree.map(lambda x: x[0], parts), None)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, parts)[0]


def _add_to_window(state: TrainState, counts: Counts, length: int) -> tuple[Float[Array, "_M _A"], ...]:
    """Choices of each expert since the last step whose number is a multiple of `length`, this step's included."""
    before = [jnp.where(state.step % length == 0, 0, window) for window in state.window]
    return tuple(old + new.astype(old.dtype) for old, new in zip(before, counts, strict=True))


def _max_violation(counts: Counts) -> Float[Array, "M"] | None:
    """MaxVio of all MoE layers; None: there are none."""
    return jnp.concatenate([max_violation(part) for part in counts]) if counts else None


def _variable_specs(model: Model) -> Variables:
    replicated: Any = PartitionSpec()
    return Variables(replicated, model.specs, replicated)
