"""A bfloat16 exchange under `tensor`: each device's part of a sum is rounded on its way, and added after it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from moe_jax.config import MeshConfig, MoEConfig
from moe_jax.moe.context import plain_context
from moe_jax.moe.dispatchers.buffers import through_experts
from moe_jax.moe.feed_forward import Experts
from moe_jax.parallel.collectives import varying
from moe_jax.parallel.mesh import TENSOR, make_mesh
from moe_jax.parallel.sharding import fan_in_init, weight_specs

UNIT = 2.0**-8  # bfloat16 has 8 significant bits: rounding changes a number by this part of it at most
G, E, C, D, F = 2, 4, 8, 16, 32


def parts(tensor, wire):
    """[tensor, G, S, D]: what the devices along `tensor` make of the same slots, before their sum."""
    mesh = make_mesh(MeshConfig(tensor=tensor))
    experts = Experts(E, D, F, "relu", fan_in_init(1.0), nnx.Rngs(0), jnp.float32)
    graphdef, weights = nnx.split(experts)
    moe = MoEConfig(num_experts=E, d_ff=F, exchange_dtype=wire)

    def through(weights, slots):
        out = through_experts(
            varying(slots, [TENSOR]), nnx.merge(graphdef, weights), plain_context((G, C))._replace(capacity=C), moe
        )
        return out[None]

    specs = weight_specs(mesh, weights)
    out_specs = P(TENSOR if tensor > 1 else None)
    slots = np.random.default_rng(0).normal(size=(G, E * C, D)).astype(jnp.bfloat16).astype(np.float32)
    with jax.set_mesh(mesh):
        run = jax.shard_map(through, mesh=mesh, in_specs=(nnx.State(specs), P()), out_specs=out_specs)
        return np.asarray(jax.jit(run)(weights, slots), np.float64)


@pytest.mark.parametrize("tensor", [2, 4])
def test_a_rounded_exchange_is_off_by_at_most_the_bound(tensor):
    exact = parts(tensor, "float32")
    error = np.abs(parts(tensor, "bfloat16").sum(axis=0) - exact.sum(axis=0))
    bound = UNIT * np.abs(exact).sum(axis=0)
    assert np.all(error <= bound * (1 + 1e-3) + 1e-6)
    assert np.max(error / bound) > 0.5  # the bound says something


def test_adding_before_rounding_would_be_no_closer_on_average():
    """Its bound is smaller where parts cancel, yet its mean square is the same: parts of half the variance each."""
    whole = parts(1, "float32")[0]
    rms = lambda tensor: np.sqrt(np.mean((parts(tensor, "bfloat16").sum(axis=0) - whole) ** 2))
    assert 0.8 < rms(2) / rms(1) < 1.25
    assert 0.8 < rms(4) / rms(1) < 1.25
