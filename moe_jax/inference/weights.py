"""Weights as decoding reads them: a tree a layer, whole on each device but for what the computation itself splits.

Training stacks the layers, to scan over them, and cuts each weight over the mesh for storage. A decoding step computes
so little that it would spend its time on copies out of the stack and on gathers.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

from moe_jax.config.schema import RunConfig
from moe_jax.models.decoder import Decoder
from moe_jax.moe.bias_updates import BalanceBias
from moe_jax.moe.feed_forward import MATRICES
from moe_jax.moe.packed import Pieces, quantize
from moe_jax.parallel.mesh import EXPERT
from moe_jax.parallel.sharding import RULES, Axes, spec_of

UNCUT = {rule.split: name for name, rule in RULES.items() if not rule.stored}  # an axis that is split alike, not stored
PRECISE = ("router", "scale", "bias", "sinks", "gate_bias", "up_bias", "down_bias")  # names that keep their precision
FORMS = ("", "int8")


Placed = Array | jax.ShapeDtypeStruct  # an array on the mesh, or its shape and sharding


class Weights(NamedTuple):
    """What the steps of decoding compute with."""

    step: Any  # of training, for schedules inside the model; like the others an array, its shape or a PartitionSpec
    embedding: Any
    layers: tuple[Any, ...]  # (parameters, balance biases) of each, nested dicts
    norm: Any
    head: Any  # [D, V], also where it is tied to the embedding


def blank(run: RunConfig) -> Decoder:
    """The model without weights, nothing of which is cut for storage alone."""
    model = nnx.eval_shape(lambda: Decoder(run, nnx.Rngs(params=0)))
    for _, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Param):
            node.set_metadata(axes=tuple(UNCUT[RULES[axis].split] for axis in node.axes))
    return model


def place(
    run: RunConfig,
    mesh: Mesh,
    step: Array,
    params: Mapping[str, Any],
    biases: Mapping[str, Any],
    form: str = "",
    put_on: Callable[[Array, NamedSharding], Placed] = jax.device_put,
) -> Weights:
    """The weights of a trained or imported model in the precision of `model.dtype`.

    Args:
      run: whose model it is, without adapters.
      mesh: where they go.
      step: of training.
      params: nested dicts of the model's parameters, on any mesh.
      biases: likewise of its balance biases.
      form: "int8": matrices in int8 with a scale for each output channel; embedding, norms and routers are not.
      put_on: what moves an array to its place.
    """
    model = blank(run)
    put = _Placing(mesh, jnp.dtype(run.model.dtype), form, put_on)
    layers: list[Any] = []
    for number, segment in enumerate(model.segments):
        for repeat in range(segment.repeats):
            for at, block in enumerate(segment.blocks):
                _, own, own_biases = nnx.split(block, nnx.Param, BalanceBias)  # type: ignore[misc]  # flax's annotation
                find = lambda tree, at=at, number=number: tree["segments"][number]["blocks"][at]
                one = put.tree(own, find(params), repeat)
                layers.append((one, put.biases(own_biases, find(biases) if own_biases else {}, repeat)))
    table = params["embedding"]
    tied = run.model.tie_embeddings
    head = put.matrix(table.T if tied else params["head"], (None, "vocab"))
    norm = put.tree(nnx.state(model.norm, nnx.Param), params["norm"], None)
    embedding = put.array(table, (None, None), put.dtype)
    return Weights(put.replicated(step), embedding, tuple(layers), norm, head)


def weight_shapes(run: RunConfig, mesh: Mesh, form: str = "") -> Weights:
    """Shapes and shardings of placed weights; nothing is computed or allocated."""
    made: list[Weights] = []

    def describe() -> None:
        of = lambda array, sharding: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)
        model = Decoder(run, nnx.Rngs(params=0))
        params, biases = (nnx.to_pure_dict(nnx.state(model, kind)) for kind in (nnx.Param, BalanceBias))
        made.append(place(run, mesh, jnp.int32(0), params, biases, form, put_on=of))

    jax.eval_shape(describe)
    return made[0]


def specs_of(weights: PyTree) -> PyTree:
    """The PartitionSpecs of placed weights, or of caches."""
    return jax.tree.map(lambda array: array.sharding.spec, weights)


class _Placing(NamedTuple):
    """How weights go to the mesh."""

    mesh: Mesh
    dtype: Any
    form: str
    put_on: Callable[[Array, NamedSharding], Placed]

    def tree(self, state: nnx.State, values: Mapping[str, Any], repeat: int | None) -> PyTree:
        """The parameters of a module; of a stack of them those at `repeat`."""
        placed: dict[Any, Any] = {}
        for path, variable in nnx.to_flat_state(state):
            value: Any = values
            for part in path:
                value = value[part]
            node = placed
            for part in path[:-1]:
                node = node.setdefault(part, {})
            node[path[-1]] = self._one(path, value if repeat is None else value[repeat], variable.axes)
        return placed

    def biases(self, state: nnx.State, values: Mapping[str, Any], repeat: int) -> PyTree:
        """The balance biases of a layer, which every device has."""
        return jax.tree.map(lambda bias: self.replicated(bias[repeat]), values) if state else nnx.to_pure_dict(state)

    def _one(self, path: tuple[Any, ...], value: Array, axes: Axes) -> Any:
        if any(part in PRECISE for part in path) or value.ndim < 2:
            return self.array(value, axes, jnp.promote_types(self.dtype, jnp.float32))
        if path[-2:-1] == ("experts",) and path[-1] in MATRICES and self._apart():
            return self._pieces(value, axes)
        return self.matrix(value, axes)

    def _apart(self) -> bool:
        return self.mesh.devices.flat[0].platform == "cpu"

    def _pieces(self, value: Array, axes: Axes) -> Pieces:
        """The devices along `expert` have one expert each in every piece."""
        devices = self.mesh.shape[EXPERT]
        by_device = value.reshape(devices, -1, *value.shape[1:])
        return Pieces([self.matrix(by_device[:, at], axes) for at in range(by_device.shape[1])])

    def matrix(self, value: Array, axes: Axes) -> Any:
        """A matrix, or one for each expert."""
        if not self.form:
            return self.array(value, axes, self.dtype)
        scale_axes = (*axes[:-2], None, axes[-1])
        packed = jax.jit(quantize)(value.astype(jnp.float32))
        scale = self.array(packed.scale, scale_axes, jnp.float32)
        return type(packed)(self.array(packed.values, axes, jnp.int8), scale)

    def array(self, value: Array, axes: Axes, dtype: DTypeLike) -> Placed:
        """One array, cut as its axes say."""
        cuts = [RULES[axis].split for axis in axes]
        return self.put_on(jnp.asarray(value).astype(dtype), NamedSharding(self.mesh, spec_of(self.mesh, *cuts)))

    def replicated(self, value: Array) -> Placed:
        """A whole array on each device."""
        return self.put_on(value, NamedSharding(self.mesh, spec_of(self.mesh)))


def num_bytes(tree: PyTree) -> int:
    """Of all devices together, each part counted once."""
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
