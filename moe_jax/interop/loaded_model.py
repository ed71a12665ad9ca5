"""`load_hf`: a Hugging Face folder as a function from tokens to logits."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from moe_jax.config.rules import directory, one_of
from moe_jax.config.schema import MeshConfig, RunConfig
from moe_jax.interop.folder import config_of, open_folder
from moe_jax.interop.load import Weights, load_weights
from moe_jax.parallel.mesh import AXES, TENSOR, TOKEN_AXES, make_mesh
from moe_jax.parallel.sharding import spec_of
from moe_jax.resolve import resolve
from moe_jax.tasks.registry import task_of
from moe_jax.train.state import Model, Variables, build_model

DTYPES = ("float32", "bfloat16", "float64")


class LoadedModel:
    """A decoder with weights on a mesh. Call it with tokens; no token is ever dropped."""

    def __init__(self, run: RunConfig, mesh: Mesh, model: Model, weights: Weights):
        self.run, self.mesh, self.weights = run, mesh, weights
        replicated: Any = PartitionSpec()
        self._specs = Variables(replicated, model.specs, replicated)
        self._forward = functools.cache(self._compile)

    def __call__(self, ids: ArrayLike) -> Float[Array, "B L V"]:
        """The logits of the token behind each position of `ids` [B, L], in float32 (float64 for a float64 model).

        The vocabulary may be cut over the mesh axis `tensor` and sequences over the others. A new shape of `ids` is
        compiled at its first call. Raises ValueError for what are no vocabulary indices.
        """
        tokens = np.asarray(ids)
        if tokens.ndim != 2 or 0 in tokens.shape or not np.issubdtype(tokens.dtype, np.integer):
            raise ValueError(f"ids of shape {tokens.shape} and type {tokens.dtype}: give whole numbers [B, L]")
        vocabulary = self.run.model.vocab_size
        if tokens.min() < 0 or tokens.max() >= vocabulary:
            raise ValueError(f"ids from {tokens.min()} to {tokens.max()}: give those of a vocabulary of {vocabulary}")
        sequences, length = tokens.shape
        shards = int(np.prod([self.mesh.shape[axis] for axis in TOKEN_AXES]))
        padded = np.zeros((-(-sequences // shards) * shards, length), np.int32)
        padded[:sequences] = tokens
        documents = np.zeros_like(padded)
        documents[:sequences] = 1  # the sequences behind are padding
        sharding = NamedSharding(self.mesh, spec_of(self.mesh, TOKEN_AXES))
        variables = Variables(jnp.int32(0), self.weights.params, self.weights.balance_bias)
        logits = self._forward(length)(variables, *jax.device_put((padded, documents), sharding))
        return logits[:sequences]

    def _compile(self, length: int) -> Callable[[Variables, Array, Array], Array]:
        """The forward pass of sequences of this length, each a group of its own with room for all its tokens."""
        moe = dataclasses.replace(self.run.moe, group_size=length)
        task = task_of(dataclasses.replace(self.run, moe=moe))
        model = build_model(task, self.mesh)

        def on_device(variables: Variables, ids: Array, documents: Array) -> Array:
            decoder: Any = model.bind(variables)
            return decoder.logits(ids, documents)[0]

        tokens = spec_of(self.mesh, TOKEN_AXES)
        out = spec_of(self.mesh, TOKEN_AXES, (), (TENSOR,))
        forward = jax.shard_map(on_device, mesh=self.mesh, in_specs=(self._specs, tokens, tokens), out_specs=out)
        return jax.jit(forward)


def load_hf(folder: str | Path, mesh: Mesh | None = None, dtype: str = "float32") -> LoadedModel:
    """A model from a Hugging Face folder (config.json and safetensors), each device with its piece of the weights.

    Args:
      folder: see docs/models.md for the families that are read.
      mesh: made by `moe_jax.parallel.mesh.make_mesh`; None: one device.
      dtype: float32, bfloat16 or float64, of weights, activations and matmuls. Routers and norms compute in float32 or
        better.

    Raises:
      ConfigError: in one line, for a folder that is not whole, not supported, or does not divide over the mesh.
    """
    one_of("dtype", dtype, DTYPES)
    path = directory("folder", str(folder))
    opened = open_folder(path)
    mesh = make_mesh(MeshConfig()) if mesh is None else mesh
    config = config_of(path)
    sizes = {axis: int(mesh.shape[axis]) for axis in AXES}
    config.mesh.update(sizes)
    config.model.dtype = dtype
    config.data.batch_size = int(np.prod([sizes[axis] for axis in TOKEN_AXES]))
    config.data.sequence_length = config.moe.group_size = 1
    run = resolve(config, mesh.size)
    model = with_dtype(build_model(task_of(run), mesh), dtype)
    return LoadedModel(run, mesh, model, load_weights(opened, run, model))


def with_dtype(model: Model, dtype: str) -> Model:
    """The model with weights that are stored in `dtype`; balance biases keep their precision."""

    def cast(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype), sharding=leaf.sharding)

    shapes: PyTree = jax.tree.map(cast, model.shapes)
    return model._replace(shapes=shapes)
