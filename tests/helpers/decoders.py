"""A small decoder of five layers, called on a mesh of one device."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from moe_jax.config import default_config
from moe_jax.models.decoder import Decoder
from moe_jax.parallel.mesh import make_mesh
from moe_jax.resolve import resolve

B, L = 2, 16


def make_run(**fields):
    config = default_config()
    base = {
        "model.num_layers": 5, "model.d_model": 16, "model.d_ff": 24, "model.num_heads": 4, "model.num_kv_heads": 2,
        "model.vocab_size": 32, "moe.num_experts": 4, "moe.every": 2, "moe.first_dense": 0, "moe.group_size": L,
        "moe.router": "top_k", "moe.top_k": 2, "data.sequence_length": L, "data.batch_size": B,
    }  # fmt: skip
    config.update_from_flattened_dict({**base, **fields})
    return resolve(config)


def tokens(seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 32, (B, L)), jnp.int32)


def build(run):
    return nnx.split(Decoder(run, nnx.Rngs(params=0)), nnx.Param)


def text(documents, ids=None, targets=None):
    """The first arguments of the decoder's methods: ids, documents, step; with targets, which valid ones are scored."""
    ids = tokens() if ids is None else ids
    step = jnp.int32(0)
    return (ids, documents, step) if targets is None else (ids, targets, documents, documents > 0, step)


def call(run, weights, method, *args):
    """Decoder.`method`(*args) with `weights` on a mesh of one device."""
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: Decoder(run, nnx.Rngs(params=0))), nnx.Param)
    bound = lambda weights: getattr(nnx.merge(graphdef, weights), method)(*args)
    return jax.shard_map(bound, mesh=make_mesh(run.mesh), in_specs=P(), out_specs=P())(weights)
