"""Which keys a query sees, against a loop in NumPy: windows, documents, caches, and another sequence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_differences import slopes
from flax import nnx
from one_device import on_one_device
from softmax import softmax

from moe_jax.config.schema import AttentionConfig, ModelConfig
from moe_jax.models.attention.cache import KeyValueCache
from moe_jax.models.attention.grouped_query import GroupedQueryAttention
from moe_jax.models.attention.kernels import xla_attention
from moe_jax.models.attention.mask import Mask
from moe_jax.models.attention.rotary import rotate
from moe_jax.parallel.sharding import fan_in_init

B, L, H, J, N, D = 2, 12, 4, 2, 6, 8
DOCUMENTS = np.array([[1] * 5 + [2] * 4 + [3] * 3, [1] * 9 + [2] * 3])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def qkv():
    rng = np.random.default_rng(0)
    return [rng.normal(size=(B, L, heads, N)) for heads in (H, J, J)]


def attend(q, k, v, seen):
    """`seen(b, i, j)`: whether query i of sequence b sees key j."""
    y = np.zeros_like(q)
    for b, i, h in np.ndindex(q.shape[:3]):
        keys = [j for j in range(k.shape[1]) if seen(b, i, j)]
        shared = h // (q.shape[2] // k.shape[2])  # the key-value head that this head shares with its neighbours
        scores = np.array([q[b, i, h] @ k[b, j, shared] for j in keys]) / np.sqrt(q.shape[-1])
        y[b, i, h] = softmax(scores) @ v[b, keys, shared]
    return y


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("window", [0, 1, 3, L])
def test_a_query_sees_the_window_before_it_in_its_own_document(window, documents):
    q, k, v = qkv()
    numbers = jnp.asarray(DOCUMENTS) if documents else None
    mask = Mask(query_documents=numbers, key_documents=numbers, window=window)
    seen = lambda b, i, j: (
        j <= i and (not window or j > i - window) and (not documents or DOCUMENTS[b, i] == DOCUMENTS[b, j])
    )
    expected = attend(q, k, v, seen)
    for chunk in (L, 4, 1):
        y = jax.jit(lambda q, k, v, chunk=chunk: xla_attention(q, k, v, mask, chunk))(q, k, v)
        np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-12)


def test_gradients_through_a_window_in_chunks():
    q, k, v = (x[:1, :6] for x in qkv())
    factor = np.random.default_rng(1).normal(size=q.shape)
    loss = lambda k: jnp.sum(xla_attention(jnp.asarray(q), k, jnp.asarray(v), Mask(window=2), 3) * factor)
    by_loops = lambda k: np.sum(attend(q, k, v, lambda b, i, j: i - 2 < j <= i) * factor)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(k), slopes(by_loops, k), rtol=1e-6, atol=1e-8)


def test_sequences_have_their_own_start_and_keys_their_own_positions():
    """Two queries of each sequence; keys in any order, one of them far ahead."""
    keys = jnp.array([[4, 0, 3, 9], [2, 3, 1, 0]])
    own_start = Mask(start=jnp.array([3, 1]), key_positions=keys, window=2).seen(2, 4)
    np.testing.assert_array_equal(own_start[0], [[False, False, True, False], [True, False, True, False]])
    np.testing.assert_array_equal(own_start[1], [[False, False, True, True], [True, False, True, False]])
    same_keys = Mask(start=jnp.array([3, 1]), key_positions=keys[0]).seen(2, 4)
    np.testing.assert_array_equal(same_keys[1], [[False, True, False, False], [False, True, False, False]])
    same_start = Mask(start=3, key_positions=keys).seen(2, 4)
    np.testing.assert_array_equal(same_start[0], [[False, True, True, False], [True, True, True, False]])
    np.testing.assert_array_equal(same_start[1], True)
    plain = Mask(start=1).seen(2, 4)
    np.testing.assert_array_equal(plain, [[True, True, False, False], [True, True, True, False]])
    only_window = Mask(start=2, causal=False, window=2).seen(1, 4)
    np.testing.assert_array_equal(only_window, [[False, True, True, True]])
    assert Mask(causal=False).seen(2, 4) is None
    q, k, v = qkv()
    mask = Mask(start=jnp.array([3, 1]), key_positions=jnp.arange(L)[::-1])
    for chunk in (4, 2):
        y = xla_attention(*map(jnp.asarray, (q[:, :4], k, v)), mask, chunk)
        expected = attend(q[:, :4], k, v, lambda b, i, j: L - 1 - j <= (3, 1)[b] + i)
        np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-12)


def test_sequences_turn_by_positions_of_their_own():
    x, positions = jnp.asarray(qkv()[0]), jnp.stack([jnp.arange(L), 7 + jnp.arange(L)])
    attention = AttentionConfig(rope_theta=100.0)
    both = rotate(x, positions, attention)
    for b in range(B):
        np.testing.assert_allclose(both[b], rotate(x[b : b + 1], positions[b], attention)[0], rtol=1e-12)


def make_attention(window=0, chunk=L):
    model = ModelConfig(d_model=D, num_heads=H, num_kv_heads=J, head_dim=N)
    settings = AttentionConfig(window=window, chunk=chunk)
    return nnx.split(GroupedQueryAttention(model, settings, fan_in_init(1.0), nnx.Rngs(params=0), jnp.float64))


def stream(length, seed=0):
    return np.random.default_rng(seed).normal(size=(B, length, D))


@pytest.mark.parametrize("window", [0, 4])
def test_a_sequence_in_pieces_through_a_cache_equals_the_whole(window):
    """A prompt, more of it, then token by token, in a cache with room to spare and with two queries a chunk."""
    graphdef, weights = make_attention(window)
    x = stream(L)
    whole = on_one_device(lambda weights, x: nnx.merge(graphdef, weights)(x, Mask(window=window))[0])
    expected = jax.jit(whole)(weights, x)
    cached_graphdef, _ = make_attention(window, chunk=2)

    def step(weights, cache, start, x):
        return nnx.merge(cached_graphdef, weights)(x, Mask(start=start, window=window), cache=cache)

    continued = jax.jit(on_one_device(step))
    cache, outputs, start = KeyValueCache.empty(B, L + 3, (J, J), (N, N), jnp.float64), [], 0
    for length in (4, 4, 1, 1, 1, 1):
        y, cache = continued(weights, cache, jnp.int32(start), x[:, start : start + length])
        outputs.append(y)
        start += length
    assert start == L
    np.testing.assert_allclose(np.concatenate(outputs, axis=1), expected, rtol=0, atol=1e-9)
    assert np.all(np.any(cache.keys[:, :L] != 0, axis=(-1, -2))) and not np.any(cache.keys[:, L:])


def test_cross_attention_sees_all_of_another_sequence_and_no_positions():
    graphdef, weights = make_attention()
    x, memory = stream(3), stream(5, seed=1)
    cross = lambda weights, x, memory: nnx.merge(graphdef, weights)(x, Mask(causal=False), memory)[0]
    y = jax.jit(on_one_device(cross))(weights, x, memory)
    by_name = {name: np.asarray(weight) for name, weight in nnx.to_pure_dict(weights).items()}
    heads = lambda source, name: (source @ by_name[name]).reshape(B, source.shape[1], -1, N)
    q, k, v = heads(x, "q"), heads(memory, "k"), heads(memory, "v")
    expected = attend(q, k, v, lambda b, i, j: True).reshape(B, 3, H * N) @ by_name["out"]
    np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-12)
