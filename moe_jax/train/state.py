"""The state of a run on its mesh: first its shapes and shardings, which allocate nothing, then drawn or restored."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PyTree, UInt32

from moe_jax.config.layers import moe_segments
from moe_jax.config.schema import RunConfig
from moe_jax.moe.bias_updates import BalanceBias
from moe_jax.moe.dispatchers import dispatcher_name
from moe_jax.moe.grouped_matmul import implementation_of
from moe_jax.moe.router import columns
from moe_jax.parallel.sharding import Axes, shardings, weight_specs
from moe_jax.tasks.registry import task_of
from moe_jax.tasks.task import Task
from moe_jax.train.trainable import patterns_of, pick, trained_weights


class Variables(NamedTuple):
    """What the forward pass reads of a `TrainState`."""

    step: Int[Array, ""]
    params: PyTree
    balance_bias: PyTree


class TrainState(NamedTuple):
    """Everything that a step changes. Weights are a nested dict of arrays, the state of the model's `nnx.Param`s."""

    step: Int[Array, ""]  # steps done
    seed: UInt32[Array, ""]  # of the noise; a value and no constant, so that runs of other seeds share a compiled step
    params: PyTree
    balance_bias: PyTree  # the model's `BalanceBias`es, as a nested dict; empty without moe.bias_rate
    opt_state: optax.OptState
    window: tuple[Float[Array, "_M _A"], ...]  # choices of each expert since the last log.every-th step, by segment

    @property
    def variables(self) -> Variables:
        """What the forward pass reads."""
        return Variables(self.step, self.params, self.balance_bias)


class Model(NamedTuple):
    """A model without its weights. Shapes are ShapeDtypeStructs with shardings."""

    graphdef: nnx.GraphDef
    step: Any  # the shape of a number of steps
    shapes: PyTree  # of the weights
    specs: PyTree  # their PartitionSpecs
    balance_bias: PyTree  # shapes of its `BalanceBias`es, which are replicated
    trained: PyTree  # bool: whether a weight is trained
    decayed: PyTree  # bool, of those that are: weight decay applies (to matrices, not to norms)
    window: tuple[jax.ShapeDtypeStruct, ...]  # see `TrainState`

    @property
    def variables(self) -> Variables:
        """Shapes of what the forward pass reads."""
        return Variables(self.step, self.shapes, self.balance_bias)

    def bind(self, variables: Variables) -> nnx.Module:
        """The model with weights."""
        return nnx.merge(self.graphdef, variables.params, variables.balance_bias)


def build_model(task: Task, mesh: Mesh) -> Model:
    """Shapes, shardings and structure of the task's model on the mesh.

    Raises ValueError for float64 where JAX does not have it, and ConfigError for a grouped matmul that the mesh's
    devices do not have.
    """
    run = with_grouped_matmul(task.run, mesh.devices.flat[0])
    if run.model.dtype == "float64" and jax.dtypes.canonicalize_dtype(jnp.float64) != jnp.float64:
        raise ValueError("model.dtype='float64' needs JAX_ENABLE_X64=1 in the environment")
    blank = nnx.eval_shape(lambda: task_of(run).build(nnx.Rngs(params=0)))
    graphdef, weights, biases = nnx.split(blank, nnx.Param, BalanceBias)  # type: ignore[misc]  # flax's annotation
    specs = weight_specs(mesh, weights)
    place = lambda weight, sharding: jax.ShapeDtypeStruct(weight.shape, weight.dtype, sharding=sharding)
    is_variable = lambda node: isinstance(node, nnx.Variable)
    trained = trained_weights(_as_dict(weights), patterns_of(run))
    decayed = jax.tree.map(lambda weight: _is_matrix(weight.axes), weights, is_leaf=is_variable)
    replicated = NamedSharding(mesh, PartitionSpec())
    window = tuple(
        jax.ShapeDtypeStruct((part.num_moe_layers, columns(part.moe)), jnp.float32, sharding=replicated)
        for part in moe_segments(run)
    )
    return Model(
        graphdef=graphdef,
        step=jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated),
        shapes=jax.tree.map(place, _as_dict(weights), shardings(mesh, specs)),
        specs=specs,
        balance_bias=jax.tree.map(lambda bias: place(bias, replicated), _as_dict(biases)),
        trained=trained,
        decayed=pick(_as_dict(decayed), trained),
        window=window,
    )


def with_grouped_matmul(run: RunConfig, device: jax.Device) -> RunConfig:
    """The run with the name of what multiplies on the device in place of "auto", where anything does."""
    if all(dispatcher_name(part.moe) != "dropless" for part in moe_segments(run)):
        return run
    name = implementation_of(run.moe.grouped_matmul, device.platform, device.device_kind, run.model.dtype)
    return dataclasses.replace(run, moe=dataclasses.replace(run.moe, grouped_matmul=name))


def _is_matrix(axes: Axes) -> bool:
    """Whether a weight, or each expert's part of it, has two dimensions, so that it is no bias and no scale."""
    return sum(axis != "expert" for axis in axes) > 1


def num_params(weights: PyTree) -> int:
    """Parameters in nested dicts of arrays or shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(weights))


def state_shapes(model: Model, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes and shardings of a whole state. What the optimiser keeps for a weight in the weight's own shape is sharded
    like it; the rest (counters, Adafactor's rows and columns) is replicated.
    """
    replicated = NamedSharding(mesh, PartitionSpec())
    trained = pick(model.shapes, model.trained)

    def like(leaf: Any, weight: Any) -> jax.ShapeDtypeStruct:
        sharding = weight.sharding if leaf.shape == weight.shape else replicated
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    opt_state = optax.tree.map_params(
        optimizer,
        like,
        jax.eval_shape(optimizer.init, trained),
        trained,
        transform_non_params=lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated),
    )

    seed: Any = jax.ShapeDtypeStruct((), jnp.uint32, sharding=replicated)
    window: Any = model.window
    return TrainState(model.step, seed, model.shapes, model.balance_bias, opt_state, window)


def init_state(
    task: Task, shapes: TrainState, optimizer: optax.GradientTransformation, given: Variables | None = None
) -> TrainState:
    """Draws the weights, each device its own part, from `seed` alone: on any mesh the same up to rounding.

    Those that are arrays in `given` are taken from there, while shapes in there are drawn too.
    """
    there = [] if given is None else jax.tree.leaves((given.params, given.balance_bias))
    is_given = [isinstance(leaf, jax.Array) for leaf in there]

    def create(seed: Array, arrays: list[Array]) -> TrainState:
        model = task.build(nnx.Rngs(params=jax.random.key(seed)))
        drawn = tuple(_as_dict(nnx.state(model, kind)) for kind in (nnx.Param, BalanceBias))
        leaves, structure = jax.tree.flatten(drawn)
        remaining = iter(arrays)
        if is_given:
            leaves = [next(remaining) if given else leaf for leaf, given in zip(leaves, is_given, strict=True)]
        params, biases = jax.tree.unflatten(structure, leaves)
        window = jax.tree.map(lambda counts: jnp.zeros(counts.shape, counts.dtype), shapes.window)
        opt_state = optimizer.init(pick(params, trained_weights(params, patterns_of(task.run))))
        return TrainState(jnp.zeros((), jnp.int32), seed, params, biases, opt_state, window)

    placed = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    arrays = [leaf for leaf, given in zip(there, is_given, strict=True) if given]
    return jax.jit(create, out_shardings=placed)(jnp.uint32(task.run.seed), arrays)


def _as_dict(state: Any) -> Mapping[str, Any]:
    return nnx.to_pure_dict(state)
