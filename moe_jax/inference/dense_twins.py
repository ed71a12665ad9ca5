"""Dense models to compare a Mixture of Experts with: of as many parameters in all, and as many a token."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PyTree

from moe_jax.config.rules import ConfigError
from moe_jax.config.schema import MoEConfig, RunConfig
from moe_jax.inference.engine import Engine
from moe_jax.inference.weights import Weights, place
from moe_jax.models.decoder import Decoder
from moe_jax.moe.bias_updates import BalanceBias
from moe_jax.moe.packed import Quantized
from moe_jax.resolve.counting import Counts, count

MULTIPLE = 8  # of the twins' d_ff


def dense_twin(run: RunConfig, size: Callable[[Counts], int]) -> RunConfig:
    """The run with dense layers, whose d_ff makes its `size` the nearest to that of `run`."""
    if not run.moe.num_experts:
        raise ConfigError("--compare: the model has no experts: compare one that has")

    def dense(d_ff: int) -> RunConfig:
        return dataclasses.replace(run, model=dataclasses.replace(run.model, d_ff=d_ff), moe=MoEConfig())

    least, more = size(count(dense(MULTIPLE))), size(count(dense(2 * MULTIPLE)))
    steps = (size(count(run)) - least) / (more - least)
    return dense(MULTIPLE * max(1, 1 + round(steps)))


def twins(engine: Engine) -> dict[str, Engine]:
    """Engines like `engine` for both twins, with random weights."""
    sizes = {
        "dense, as many parameters": lambda counts: counts.total_params,
        "dense, as many a token": lambda counts: counts.active_params,
    }
    return {name: random_engine(dense_twin(engine.steps.run, size), engine) for name, size in sizes.items()}


def random_engine(run: RunConfig, like: Engine) -> Engine:
    """An engine of a model that is drawn, in the places, pieces and form of weights of another one."""
    mesh = like.steps.mesh
    form = "int8" if isinstance(like.steps.weights.head, Quantized) else ""
    return Engine(run, mesh, drawn(run, mesh, form), like.text, like.places, like.length, like.piece)


def drawn(run: RunConfig, mesh: Mesh, form: str = "") -> Weights:
    """Random weights of a model, as decoding reads them; `form` is that of `place`."""
    return place(run, mesh, jnp.int32(0), *drawn_parameters(run), form)


def drawn_parameters(run: RunConfig) -> tuple[PyTree, PyTree]:
    """Random parameters and balance biases of a model, as training has them."""

    def create():
        model = Decoder(run, nnx.Rngs(params=0))
        return tuple(nnx.to_pure_dict(nnx.state(model, kind)) for kind in (nnx.Param, BalanceBias))

    return jax.jit(create)()
