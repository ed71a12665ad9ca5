"""One MoE layer with its gradients on any mesh, small enough to compile in seconds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from moe_jax.config import MeshConfig, MoEConfig
from moe_jax.config.schema import LoraConfig
from moe_jax.models.adapters import add_adapters
from moe_jax.moe.context import Context
from moe_jax.moe.feed_forward import MATRICES
from moe_jax.moe.layer import MoELayer
from moe_jax.parallel.collectives import sum_over
from moe_jax.parallel.mesh import AXES, TOKEN_AXES, make_mesh
from moe_jax.parallel.sharding import fan_in_init, spec_of, weight_specs

SEQUENCES, LENGTH, D = 8, 10, 8


def layer_moe(**fields) -> MoEConfig:
    """8 experts, top 3, a group a sequence."""
    defaults = dict(
        num_experts=8, top_k=3, d_ff=8, activation="swiglu", router="top_k", group_size=LENGTH, capacity_factor=0.9,
        normalize_gates=True,
    )  # fmt: skip
    return MoEConfig(**{**defaults, **fields})


@functools.cache
def inputs():
    """x, the weights of the loss, and which tokens are valid: a sequence in two ends in padding, one is all padding."""
    rng = np.random.default_rng(0)
    valid = np.arange(LENGTH) < rng.integers(LENGTH // 2, 2 * LENGTH, SEQUENCES)[:, None]
    valid[3] = False
    return rng.normal(size=(SEQUENCES, LENGTH, D)), rng.normal(size=(SEQUENCES, LENGTH, D)), valid


def run_layer(moe: MoEConfig, mesh: dict[str, int], skew: float = 0.0, noise: bool = True, lora: int = 0):
    """(y, sums of statistics, gradients of x and of every weight) in float64, on the host.

    `skew` moves all tokens towards expert 5; `lora` is the rank of adapters that all experts have.
    """
    with jax.enable_x64(True):
        on = make_mesh(MeshConfig(**{axis: mesh.get(axis, 1) for axis in AXES}))
        layer = MoELayer(D, moe, fan_in_init(1.0), nnx.Rngs(params=0), jnp.float64)
        if lora:
            add_adapters(layer, LoraConfig(rank=lora, targets=("experts/*",)), nnx.Rngs(params=1))
            for number, name in enumerate(MATRICES):  # B is zero at first
                b = layer.experts.lora[name].b
                b[...] = 0.3 * jax.random.normal(jax.random.key(number), b.shape, b.dtype)
        graphdef, weights = nnx.split(layer)
        x, towards, valid = inputs()
        if skew:
            x = x.copy()
            x[..., 0] = 1.0
            weights["router"]["weight"][...] = weights["router"]["weight"][...].at[0, 5].add(skew)
        keys = jax.random.split(jax.random.key(7), SEQUENCES)

        def local(weights, x, towards, valid, keys):
            ids = jnp.arange(x.shape[0] * x.shape[1], dtype=jnp.int32).reshape(x.shape[:2]) % 5
            context = Context(ids, valid, keys if noise else None, jnp.int32(0))
            y, sums = nnx.merge(graphdef, weights)(x, context, True)
            return sum_over(jnp.sum(jnp.sin(y) * towards), TOKEN_AXES), (y, sum_over(sums, TOKEN_AXES))

        tokens = spec_of(on, TOKEN_AXES)
        specs = nnx.State(weight_specs(on, weights))
        sharded = jax.shard_map(local, mesh=on, in_specs=(specs, *[tokens] * 4), out_specs=(P(), (tokens, P())))
        with jax.set_mesh(on):
            step = jax.jit(jax.grad(sharded, argnums=(0, 1), has_aux=True))
            grads, (y, sums) = step(weights, x, towards, valid, keys)
        return jax.device_get((y, sums, nnx.to_pure_dict(grads[0]), grads[1]))


def assert_same(actual, expected, relative=1e-12):
    """Every array, to a part of its largest number."""

    def compare(path, a, b):
        scale = max(float(np.max(np.abs(b), initial=0)), 1e-3)
        np.testing.assert_allclose(a, b, rtol=0, atol=relative * scale, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(compare, actual, expected)
