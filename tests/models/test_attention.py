import jax
import jax.numpy as jnp
import numpy as np
import pytest
from softmax import softmax

from moe_jax.config.schema import AttentionConfig
from moe_jax.models.attention.kernels import xla_attention
from moe_jax.models.attention.mask import Mask
from moe_jax.models.attention.rotary import rotate

B, L, H, J, N = 2, 12, 4, 2, 6


def qkv(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda heads: jnp.asarray(rng.normal(size=(B, L, heads, N)), jnp.float32)
    return draw(H), draw(J), draw(J)


@pytest.mark.parametrize("chunk", [L, 4, 1])
def test_equals_jaxs_own_attention_with_grouped_queries(chunk):
    q, k, v = qkv()
    theirs = lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True)
    ours = lambda q, k, v: xla_attention(q, k, v, Mask(), chunk)
    np.testing.assert_allclose(ours(q, k, v), theirs(q, k, v), rtol=1e-5, atol=1e-6)
    loss = lambda f: jax.grad(lambda *args: jnp.sum(jnp.sin(f(*args))), argnums=(0, 1, 2))(q, k, v)
    for mine, other in zip(loss(ours), loss(theirs), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [L, 3])
def test_documents_do_not_see_each_other(chunk):
    q, k, v = qkv()
    documents = jnp.asarray(np.repeat([[1, 2, 3]], [5, 4, 3], axis=1).repeat(B, axis=0))
    packed = xla_attention(q, k, v, Mask(query_documents=documents, key_documents=documents), chunk)
    for start, end in ((0, 5), (5, 9), (9, 12)):
        alone = xla_attention(q[:, start:end], k[:, start:end], v[:, start:end], Mask(), chunk=L)
        np.testing.assert_allclose(packed[:, start:end], alone, rtol=1e-5, atol=1e-6)


def rotated(x, positions, theta):
    return rotate(x, positions, AttentionConfig(rope_theta=theta))


def test_rotation_by_hand():
    x = jnp.ones((1, 3, 1, 4))
    angles = np.outer(np.arange(3), [1, 100.0**-0.5])
    expected = np.concatenate([np.cos(angles) - np.sin(angles), np.cos(angles) + np.sin(angles)], axis=-1)
    np.testing.assert_allclose(rotated(x, jnp.arange(3), 100.0)[0, :, 0], expected, rtol=1e-6)


def test_rotated_scores_depend_on_the_distance_only():
    rng = np.random.default_rng(0)
    q, k = (jnp.broadcast_to(jnp.asarray(rng.normal(size=N), jnp.float32), (1, L, 1, N)) for _ in range(2))
    scores = np.einsum(
        "qn,kn->qk",
        rotated(q, jnp.arange(L), 10.0)[0, :, 0],
        rotated(k, jnp.arange(L), 10.0)[0, :, 0],
    )
    for distance in range(L - 1):
        np.testing.assert_allclose(np.diagonal(scores, -distance), scores[distance, 0], rtol=1e-4, atol=1e-5)
    assert abs(scores[1, 0] - scores[0, 0]) > 1e-2


def test_bfloat16_scores_are_summed_in_float32():
    """Weights and output are rounded to bfloat16, scores are not: those of 100 would be off by a quarter."""
    q, k, v = (x.astype(jnp.bfloat16) for x in qkv())
    q, k = q * 8, k * 4
    y = np.asarray(xla_attention(q, k, v, Mask(), L), np.float64)
    q, k, v = (np.asarray(x, np.float64).repeat(H // x.shape[2], axis=2) for x in (q, k, v))
    scores = np.einsum("bqhn,bkhn->bhqk", q, k) * N**-0.5
    causal = np.tril(np.ones((L, L), bool))
    attend = lambda scores: np.einsum("bhqk,bkhn->bqhn", softmax(np.where(causal, scores, -np.inf)), v)
    bound = 2.0**-7 * np.max(np.abs(v))  # half a unit in the last place of the weights, and of the output
    assert np.max(np.abs(y - attend(scores))) < bound
    rounded = np.asarray(jnp.asarray(scores * N**0.5, jnp.bfloat16), np.float64) * N**-0.5
    assert np.max(np.abs(attend(rounded) - attend(scores))) > 2 * bound
