import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.models.attention.kernels import cudnn_attention, xla_attention
from moe_jax.models.attention.mask import Mask


@pytest.mark.gpu
@pytest.mark.parametrize("window", [0, 40])
def test_cudnn_attention_equals_the_plain_one(window):
    mask = Mask(window=window)
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (
        jax.random.normal(key, (2, 128, heads, 64), jnp.bfloat16) for key, heads in zip(keys, (8, 2, 2), strict=True)
    )
    loss = lambda attend: jax.grad(lambda q: jnp.sum(attend(q, k, v, mask, 128).astype(jnp.float32) ** 2))(q)
    np.testing.assert_allclose(np.float32(loss(cudnn_attention)), np.float32(loss(xla_attention)), rtol=5e-2, atol=5e-2)
