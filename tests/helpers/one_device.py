"""An MoE layer called by itself, on a mesh of one device."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from moe_jax.config import MeshConfig, MoEConfig
from moe_jax.moe.context import Context
from moe_jax.moe.layer import MoELayer
from moe_jax.parallel.mesh import make_mesh
from moe_jax.parallel.sharding import fan_in_init


def on_one_device(function):
    return jax.shard_map(function, mesh=make_mesh(MeshConfig()), in_specs=P(), out_specs=P())


def make_layer(moe: MoEConfig, d_model: int, seed: int = 0) -> MoELayer:
    return MoELayer(d_model, moe, fan_in_init(1.0), nnx.Rngs(params=seed), jnp.zeros(()).dtype)


def apply(layer: MoELayer, x, valid=None, keys=None, train=True, ids=None, step=0):
    """(y, sums) of x [B, L, D]."""
    graphdef, weights = nnx.split(layer)
    valid = np.ones(x.shape[:2], bool) if valid is None else valid
    ids = np.zeros(x.shape[:2], np.int32) if ids is None else ids

    def forward(weights, x, ids, valid):
        return nnx.merge(graphdef, weights)(x, Context(ids, valid, keys, jnp.int32(step)), train)

    return jax.jit(on_one_device(forward))(weights, x, ids, valid)
