"""The state of a run on its mesh: abstract first (shapes and shardings, nothing allocated), then drawn or restored."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PyTree, UInt32

from moe_jax.config.layers import moe_segments
from moe_jax.config.schema import RunConfig
from moe_jax.models.decoder import Decoder
from moe_jax.moe.balance_bias import BalanceBias
from moe_jax.moe.router import columns
from moe_jax.parallel.sharding import shardings, weight_specs


class TrainState(NamedTuple):
    """Everything that a step changes. Weights are a nested dict of arrays, the state of the model's `nnx.Param`s."""

    step: Int[Array, ""]  # steps done
    seed: UInt32[Array, ""]  # of the noise; a value and no constant, so that runs of other seeds share a compiled step
    params: PyTree
    balance_bias: PyTree  # likewise, of its `BalanceBias`es; empty without moe.bias_rate
    opt_state: optax.OptState
    window: tuple[Float[Array, "_M _E"], ...]  # choices of each expert since the last log.every-th step, by segment

    @property
    def variables(self) -> "Variables":
        """What the forward pass reads."""
        return Variables(self.step, self.params, self.balance_bias)


class Variables(NamedTuple):
    """What the forward pass reads of a `TrainState`."""

    step: Int[Array, ""]
    params: PyTree
    balance_bias: PyTree


class Model(NamedTuple):
    """A model without its weights."""

    graphdef: nnx.GraphDef
    abstract: PyTree  # weights as ShapeDtypeStructs with shardings
    specs: PyTree  # their PartitionSpecs
    balance_bias: PyTree  # its `BalanceBias`es, as ShapeDtypeStructs, replicated
    decayed: PyTree  # bool: weight decay applies (matrices; not norms)
    window: tuple[jax.ShapeDtypeStruct, ...]  # see `TrainState`


def build_model(run: RunConfig, mesh: Mesh) -> Model:
    """Shapes, shardings and structure of the model that `run` describes."""
    if run.model.dtype == "float64" and not jax.config.jax_enable_x64:
        raise ValueError("model.dtype='float64' needs JAX_ENABLE_X64=1 in the environment")
    decoder = nnx.eval_shape(lambda: Decoder(run, nnx.Rngs(params=0)))
    graphdef, weights, biases = nnx.split(decoder, nnx.Param, BalanceBias)
    specs = weight_specs(mesh, weights)
    place = lambda weight, sharding: jax.ShapeDtypeStruct(weight.shape, weight.dtype, sharding=sharding)
    abstract = jax.tree.map(place, nnx.to_pure_dict(weights), shardings(mesh, specs))
    is_variable = lambda node: isinstance(node, nnx.Variable)
    decayed = nnx.to_pure_dict(jax.tree.map(lambda weight: len(weight.axes) > 1, weights, is_leaf=is_variable))
    replicated = NamedSharding(mesh, PartitionSpec())
    biases = jax.tree.map(lambda bias: place(bias, replicated), nnx.to_pure_dict(biases))
    counts = [
        jax.ShapeDtypeStruct((part.num_moe_layers, columns(part.moe)), jnp.float32, sharding=replicated)
        for part in moe_segments(run)
    ]
    return Model(graphdef, abstract, specs, biases, decayed, tuple(counts))


def num_params(model: Model) -> int:
    """Parameters in the real tree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.abstract))


def abstract_state(model: Model, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Shapes and shardings of a whole state. What the optimiser keeps for a weight in the weight's own shape is sharded
    like it; the rest (counters, Adafactor's rows and columns) is replicated.
    """
    replicated = NamedSharding(mesh, PartitionSpec())

    def like(leaf, weight):
        sharding = weight.sharding if leaf.shape == weight.shape else replicated
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    opt_state = optax.tree.map_params(
        optimizer,
        like,
        jax.eval_shape(optimizer.init, model.abstract),
        model.abstract,
        transform_non_params=lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated),
    )
    number = lambda dtype: jax.ShapeDtypeStruct((), dtype, sharding=replicated)
    return TrainState(
        number(jnp.int32), number(jnp.uint32), model.abstract, model.balance_bias, opt_state, model.window
    )


def init_state(run: RunConfig, abstract: TrainState, optimizer: optax.GradientTransformation) -> TrainState:
    """Draws the weights, each device its own part, from `seed` alone: on any mesh the same up to rounding."""

    def create(seed) -> TrainState:
        decoder = Decoder(run, nnx.Rngs(params=jax.random.key(seed)))
        params, biases = (nnx.to_pure_dict(nnx.state(decoder, kind)) for kind in (nnx.Param, BalanceBias))
        window = jax.tree.map(lambda counts: jnp.zeros(counts.shape, counts.dtype), abstract.window)
        return TrainState(jnp.zeros((), jnp.int32), seed, params, biases, optimizer.init(params), window)

    placed = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(create, out_shardings=placed)(jnp.uint32(run.seed))
