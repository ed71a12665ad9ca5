"""Weights on the mesh: where each logical axis is stored, and which of it comes back before use.

A parameter's shape, logical axes and initialiser are declared together (`param`). The rule table says, for each logical
axis, over which mesh axes it is cut; `gather` brings back the part that is only cut for storage (fully sharded data
parallelism) and leaves the part over which the computation itself is split (expert and tensor parallelism).
"""

import abc
import math
from collections.abc import Callable, Sequence
from types import EllipsisType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, PyTree

from moe_jax.parallel.collectives import all_gather, varying
from moe_jax.parallel.mesh import DATA, EXPERT, FSDP, TENSOR


class Rule(NamedTuple):
    """Mesh axes over which a logical axis is cut, major first: first `split`, within it `stored`."""

    split: tuple[str, ...] = ()  # the computation is split too: never gathered
    stored: tuple[str, ...] = ()  # only storage is split: gathered before use, gradients reduce-scattered after


# A weight is stored in pieces along a dimension that is not its last one: the gradient of its gather is then a
# reduce-scatter on every backend, where XLA for TPU makes an all-reduce of twice the bytes from the last dimension.
RULES: dict[str | None, Rule] = {
    None: Rule(),
    "embed": Rule(stored=(FSDP, EXPERT)),  # D of a dense weight, contracted
    "latent": Rule(stored=(FSDP, EXPERT)),  # a compressed vector's dimensions, contracted
    "heads": Rule(split=(TENSOR,)),  # H * N, produced
    "heads_in": Rule(split=(TENSOR,), stored=(FSDP, EXPERT)),  # H * N, contracted
    "mlp": Rule(split=(TENSOR,)),  # F, produced
    "mlp_in": Rule(split=(TENSOR,), stored=(FSDP, EXPERT)),  # F, contracted
    "vocab": Rule(split=(TENSOR,)),  # V, produced
    "vocab_in": Rule(stored=(FSDP, EXPERT)),  # V, looked up
    "expert": Rule(split=(EXPERT,)),
    "expert_embed": Rule(stored=(FSDP,)),  # D of an expert weight, contracted
    "expert_mlp": Rule(split=(TENSOR,)),
    "expert_mlp_in": Rule(split=(TENSOR,), stored=(FSDP,)),
}

Axes = tuple[str | None, ...]


class Packed(abc.ABC):
    """A weight that is kept in another form than one array; a pytree of arrays that stands where the array would."""

    @abc.abstractmethod
    def unpack(self, dtype: DTypeLike) -> Array:
        """The array."""

    def __getitem__(self, key: EllipsisType) -> "Packed":
        """Itself, as an array would be read by `weight[...]`."""
        return self


def param(rngs: nnx.Rngs, shape: tuple[int, ...], axes: Axes, init: Callable, dtype: Any = jnp.float32) -> nnx.Param:
    """A parameter of the whole (unsharded) `shape`, one entry of `RULES` for each dimension in `axes`."""
    if len(axes) != len(shape):
        raise ValueError(f"shape {shape} has {len(shape)} dimensions and axes {axes} name {len(axes)}")
    return nnx.Param(init(rngs.params(), shape, dtype), axes=axes)


def gather(weight: nnx.Param, dtype: Any) -> Float[Array, "..."]:
    """The part of `weight` that this device computes with, in `dtype`; inside `shard_map`.

    The transpose sums gradients in `dtype` by reduce-scatter, and only then, in the parameter's precision, each piece
    over `data`. (Left to itself that sum comes first, over the whole gathered weight.)
    """
    stored = weight[...]
    if isinstance(stored, Packed):  # of a model that is not trained: whole on each device
        return stored.unpack(dtype)
    value = varying(stored, [DATA]).astype(dtype)
    for dim, name in enumerate(weight.axes):
        value = all_gather(value, RULES[name].stored, dim)
    return value


def spec_of(mesh: Mesh, *cuts: Sequence[str]) -> PartitionSpec:
    """Dimension i is cut over the mesh axes `cuts[i]`, those of one device left out."""
    live = [tuple(axis for axis in cut if mesh.shape[axis] > 1) for cut in cuts]
    return PartitionSpec(*[cut or None for cut in live])


def weight_spec(mesh: Mesh, weight: nnx.Variable) -> PartitionSpec:
    """How `weight` is stored on the mesh. Scanned layers stack their weights along leading, uncut dimensions."""
    cuts = [RULES[name].split + RULES[name].stored for name in weight.axes]
    for size, name, cut in zip(weight.shape[len(weight.shape) - len(cuts) :], weight.axes, cuts, strict=True):
        pieces = math.prod(mesh.shape[axis] for axis in cut)
        if size % pieces:
            raise ValueError(
                f"a weight {weight.shape} with axes {weight.axes}: its {name!r} of {size} is cut into {pieces} pieces: "
                "give the dimension another axis in its `param`, or add its size to the checks of its room"
            )
    return spec_of(mesh, *[()] * (len(weight.shape) - len(cuts)), *cuts)


def weight_specs(mesh: Mesh, weights: nnx.State) -> PyTree:
    """The specs of a whole state, as a nested dict of the shape of `nnx.to_pure_dict(weights)`."""
    is_variable = lambda node: isinstance(node, nnx.Variable)
    return nnx.to_pure_dict(jax.tree.map(lambda weight: weight_spec(mesh, weight), weights, is_leaf=is_variable))


def shardings(mesh: Mesh, specs: PyTree) -> PyTree:
    """NamedShardings of a tree of specs."""
    is_spec = lambda node: isinstance(node, PartitionSpec)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=is_spec)


def fan_in_init(scale: float) -> nnx.Initializer:
    """Truncated normal of variance scale / fan_in (Switch Transformer, section 2.4).

    Weights are [..., fan in, fan out], one matrix for each expert.
    """

    def init(key: Key[Array, ""], shape: tuple[int, ...], dtype: Any) -> Array:
        experts = tuple(range(len(shape) - 2))
        scaled = nnx.initializers.variance_scaling(scale, "fan_in", "truncated_normal", batch_axis=experts)
        return scaled(key, shape, dtype)

    return init
