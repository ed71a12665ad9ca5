import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from moe_jax.config import MeshConfig
from moe_jax.models.loss import cross_entropy
from moe_jax.parallel.mesh import make_mesh

B, L, D, V = 3, 8, 5, 12


@pytest.mark.parametrize("chunk", [L, 2])
@pytest.mark.parametrize("tensor", [1, 4])
def test_equals_optax_value_and_gradients_with_the_vocabulary_in_pieces(tensor, chunk):
    rng = np.random.default_rng(0)
    x, head = jnp.asarray(rng.normal(size=(B, L, D)), jnp.float32), jnp.asarray(rng.normal(size=(D, V)), jnp.float32)
    targets, valid = jnp.asarray(rng.integers(0, V, (B, L)), jnp.int32), jnp.asarray(rng.random((B, L)) > 0.3)
    spec = P(None, "tensor") if tensor > 1 else P()
    ours = jax.shard_map(
        lambda x, head: cross_entropy(x, head, targets, valid, chunk),
        mesh=make_mesh(MeshConfig(tensor=tensor)),
        in_specs=(P(), spec),
        out_specs=P(),
    )

    def theirs(x, head):
        return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(x @ head, targets) * valid, axis=-1)

    weight = jnp.arange(1.0, B + 1)
    graded = lambda f: jax.jit(jax.value_and_grad(lambda x, head: f(x, head) @ weight, argnums=(0, 1)))(x, head)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5), graded(ours), graded(theirs))


def test_large_logits_do_not_overflow():
    x, head = jnp.full((1, 1, 1), 1e4), jnp.array([[1.0, -1.0]])
    loss = jax.shard_map(
        lambda x: cross_entropy(x, head, jnp.array([[1]]), jnp.array([[True]]), 1),
        mesh=make_mesh(MeshConfig()),
        in_specs=P(),
        out_specs=P(),
    )(x)
    np.testing.assert_allclose(loss, [2e4])


def test_bfloat16_logits_are_summed_in_float32():
    rng = np.random.default_rng(0)
    features, words = 64, 512
    x = jnp.asarray(rng.normal(size=(B, L, features)), jnp.bfloat16)
    head = jnp.asarray(rng.normal(size=(features, words)) * 5 / features**0.5, jnp.bfloat16)
    targets = rng.integers(0, words, (B, L))
    loss = jax.shard_map(
        lambda x, head: cross_entropy(x, head, jnp.asarray(targets, jnp.int32), jnp.ones((B, L), bool), L),
        mesh=make_mesh(MeshConfig()),
        in_specs=P(),
        out_specs=P(),
    )(x, head)

    def exact(logits):
        target = np.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        return (np.log(np.exp(logits).sum(-1)) - target).sum(-1)

    logits = np.asarray(x, np.float64) @ np.asarray(head, np.float64)
    assert 4 < logits.std() < 6
    assert loss.dtype == jnp.float32
    assert np.max(np.abs(loss - exact(logits))) / L < 2e-4
    rounded = np.asarray(jnp.asarray(logits, jnp.bfloat16), np.float64)
    assert np.max(np.abs(exact(rounded) - exact(logits))) / L > 1e-3
