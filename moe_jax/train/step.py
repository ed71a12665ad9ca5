"""One training step and one evaluation step: the model inside `shard_map`, everything else around it under `jit`."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, Key, PyTree

from moe_jax.config.schema import MoEConfig, RunConfig
from moe_jax.data import Batch
from moe_jax.models.decoder import Text, as_variables
from moe_jax.moe.balance import AuxiliaryLosses, auxiliary_losses, weighted
from moe_jax.moe.balance_bias import updated_bias
from moe_jax.moe.stats import RoutingStats, RoutingSums, max_violation, stats_of_layers
from moe_jax.optim.optimizer import learning_rate
from moe_jax.parallel.collectives import sum_over
from moe_jax.parallel.mesh import TOKEN_AXES
from moe_jax.parallel.sharding import spec_of
from moe_jax.train.state import Model, TrainState, Variables

NOISE = 2**31  # folded into the seed for noise, which must not repeat the draws of the initial weights


class StepMetrics(NamedTuple):
    """What a step reports; every figure covers the whole batch."""

    loss: Float[Array, ""]  # cross-entropy, nats a token
    balance_loss: Float[Array, ""]  # unweighted, summed over MoE layers, mean over micro-batches of any size
    z_loss: Float[Array, ""]  # likewise
    importance_loss: Float[Array, ""] | None  # likewise; None: of no weight
    load_loss: Float[Array, ""] | None  # likewise
    grad_norm: Float[Array, ""]  # before clipping
    learning_rate: Float[Array, ""]
    routing: RoutingStats | None  # None: a dense model
    max_violation_micro_batch: Float[Array, "M"] | None  # mean over the MaxVio of each micro-batch; likewise
    max_violation_window: Float[Array, "M"] | None  # MaxVio since the last multiple of log.every; likewise


class Losses(NamedTuple):
    """The parts of the loss and the sums they came from."""

    cross_entropy: Float[Array, ""]
    auxiliary: AuxiliaryLosses
    max_violation: Float[Array, "M"] | None
    sums: tuple[RoutingSums, ...]  # by segment; empty: a dense model


def make_train_step(
    run: RunConfig, mesh: Mesh, model: Model, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]:
    """A function to jit, donating the state. Batches hold data.batch_size sequences, sharded over the token axes."""
    gradients = jax.value_and_grad(_make_loss(run, mesh, model), has_aux=True)
    rate = learning_rate(run.train)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(state.seed), NOISE), state.step)
        grads, losses = _accumulate(gradients, run.train.accumulate, state.variables, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        counts = [part.assigned for part in losses.sums]
        window = _add_to_window(state, counts, run.log.every)
        metrics = StepMetrics(
            loss=losses.cross_entropy,
            balance_loss=losses.auxiliary.balance,
            z_loss=losses.auxiliary.z,
            importance_loss=losses.auxiliary.importance,
            load_loss=losses.auxiliary.load,
            grad_norm=optax.global_norm(grads),
            learning_rate=jnp.asarray(rate(state.step)),
            routing=stats_of_layers(losses.sums) if losses.sums else None,
            max_violation_micro_batch=losses.max_violation,
            max_violation_window=_max_violation(window),
        )
        params = optax.apply_updates(state.params, updates)
        biases = _move_biases(state, counts, run.moe)
        return TrainState(state.step + 1, state.seed, params, biases, opt_state, window), metrics

    return step


def _move_biases(state: TrainState, counts: Sequence[Float[Array, "_M _E"]], moe: MoEConfig) -> PyTree:
    """The balance biases after a step with these choices of each expert."""
    if not jax.tree.leaves(state.balance_bias):
        return state.balance_bias
    move = lambda bias, assigned: updated_bias(bias, assigned, state.step, moe)
    return jax.tree.map(move, state.balance_bias, as_variables(state.balance_bias, counts))


def _add_to_window(
    state: TrainState, counts: Sequence[Float[Array, "_M _E"]], length: int
) -> tuple[Float[Array, "_M _E"], ...]:
    """Choices of each expert since the last step whose number is a multiple of `length`, this step's included."""
    before = [jnp.where(state.step % length == 0, 0, window) for window in state.window]
    return tuple(old + new.astype(old.dtype) for old, new in zip(before, counts, strict=True))


def _max_violation(counts: Sequence[Float[Array, "_M _E"]]) -> Float[Array, "M"] | None:
    """Of all MoE layers; None: there are none."""
    return jnp.concatenate([max_violation(part) for part in counts]) if counts else None


def _make_loss(run: RunConfig, mesh: Mesh, model: Model) -> Callable:
    """(weights, other variables, micro-batch, key, tokens of the whole step, micro-batches, choices of each expert in
    the earlier ones or None) -> (loss, Losses).
    """

    def on_device(variables: Variables, batch: Batch, key: Key[Array, ""]):
        decoder = nnx.merge(model.graphdef, variables.params, variables.balance_bias)
        text = Text(batch.inputs, batch.segments, variables.step)
        nll, sums = decoder.negative_log_likelihood(text, batch.targets, key, train=True)
        return sum_over((jnp.sum(nll), sums), TOKEN_AXES)

    over_mesh = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(_variable_specs(model), spec_of(mesh, TOKEN_AXES), PartitionSpec()),
        out_specs=PartitionSpec(),
    )

    def loss(
        params: PyTree,
        variables: Variables,
        batch: Batch,
        key: Key[Array, ""],
        step_tokens: Array,
        micro_batches: int,
        before: Sequence[Float[Array, "_M _E"]] | None,
    ):
        nll, sums = over_mesh(variables._replace(params=params), batch, key)
        share = lambda tree: jax.tree.map(lambda x: x / micro_batches, tree)
        auxiliary = share(auxiliary_losses(run.moe, sums, before))
        violation = share(_max_violation([part.assigned for part in sums]))
        cross_entropy = nll / step_tokens
        total = cross_entropy + weighted(run.moe, auxiliary)
        return total, Losses(cross_entropy, auxiliary, violation, sums)

    return loss


def _accumulate(
    gradients: Callable, micro_batches: int, variables: Variables, batch: Batch, key: Key[Array, ""]
) -> tuple[PyTree, Losses]:
    """Gradients and losses of the whole step, summed over its micro-batches.

    Each micro-batch takes every `micro_batches`-th sequence, so that each device keeps the sequences it has. Its
    cross-entropy counts by its share of the step's valid tokens: the sum is that of one large batch.
    """
    tokens = jnp.maximum(jnp.sum(batch.segments > 0), 1)
    if micro_batches == 1:
        (_, losses), grads = gradients(variables.params, variables, batch, key, tokens, 1, None)
        return grads, losses
    cut = lambda x: x.reshape(x.shape[0] // micro_batches, micro_batches, *x.shape[1:]).swapaxes(0, 1)

    parts = jax.tree.map(cut, batch), jnp.arange(micro_batches)

    def one(part: Batch, index: Array, before: Sequence[Array] | None) -> tuple[PyTree, Losses]:
        noise = jax.random.fold_in(key, index)
        (_, losses), grads = gradients(variables.params, variables, part, noise, tokens, micro_batches, before)
        return grads, losses

    def add(total: tuple[PyTree, Losses], part: tuple[Batch, Array]):
        before = [sums.assigned for sums in total[1].sums]
        return jax.tree.map(jnp.add, total, one(*part, before)), None

    shapes = jax.eval_shape(one, *jax.tree.map(lambda x: x[0], parts), None)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, parts)[0]


class EvalSums(NamedTuple):
    """Sums over the valid targets of an evaluation batch, by domain, and over its tokens' routing."""

    nats: Float[Array, "domains"]
    tokens: Float[Array, "domains"]
    bytes: Float[Array, "domains"]  # of text that the targets stand for
    routing: tuple[RoutingSums, ...]  # by segment; empty: a dense model


def make_eval_step(
    run: RunConfig, mesh: Mesh, model: Model, domains: int, bytes_per_token: Int[np.ndarray, "V"]
) -> Callable[[Variables, Batch], EvalSums]:
    """A function to jit: negative log-likelihood without noise, at the capacity factor of evaluation."""

    def on_device(variables: Variables, batch: Batch) -> EvalSums:
        decoder = nnx.merge(model.graphdef, variables.params, variables.balance_bias)
        text = Text(batch.inputs, batch.segments, variables.step)
        nll, routing = decoder.negative_log_likelihood(text, batch.targets, None, train=False)
        valid = batch.segments > 0
        in_domain = jax.nn.one_hot(batch.domain, domains, dtype=nll.dtype)
        by_domain = lambda per_sequence: jnp.sum(per_sequence[:, None] * in_domain, axis=0)
        text_bytes = jnp.sum(jnp.asarray(bytes_per_token)[batch.targets] * valid, axis=-1)
        sums = EvalSums(by_domain(nll), by_domain(jnp.sum(valid, axis=-1)), by_domain(text_bytes), routing)
        return sum_over(sums, TOKEN_AXES)

    specs = _variable_specs(model), spec_of(mesh, TOKEN_AXES)
    return jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())


def _variable_specs(model: Model) -> Variables:
    return Variables(PartitionSpec(), model.specs, PartitionSpec())
