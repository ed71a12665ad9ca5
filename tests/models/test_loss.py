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
