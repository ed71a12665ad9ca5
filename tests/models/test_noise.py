"""Every layer draws noise of its own, by its index in the whole model, whatever segment it is in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoders import B, L, build, call, make_run, text
from flax import nnx

SILENT = ("attention/out", "experts/down", "feed_forward/down")  # zero: no layer adds to the residual stream


def z_by_moe_layer(jitter=0.3, **fields):
    """[M]: squared logsumexp of the router's logits where all layers have the same input and the same router."""
    run = make_run(**{"model.num_layers": 4, "moe.every": 1, "moe.jitter": jitter, **fields})
    weights = build(run)[1]
    router = jax.random.normal(jax.random.key(7), (run.model.d_model, run.moe.num_experts))

    def alike(path, weight):
        name = "/".join(str(part) for part in path)
        if name.endswith("router/weight"):
            return weight.replace(jnp.broadcast_to(router, weight.shape))
        return weight.replace(jnp.zeros(weight.shape)) if name.endswith(SILENT) else weight

    weights = nnx.map_state(alike, weights)
    documents, key = jnp.ones((B, L), jnp.int32), jax.random.key(3)
    hidden = jax.jit(lambda weights: call(run, weights, "hidden", *text(documents), key, True))
    return np.concatenate([part["squared_logsumexp"] for part in hidden(weights)[1]])


@pytest.fixture(scope="module")
def by_layer():
    return z_by_moe_layer()


def test_layers_do_not_share_their_noise(by_layer):
    quiet = z_by_moe_layer(jitter=0.0)
    np.testing.assert_allclose(quiet, quiet[0], rtol=1e-6)
    assert quiet.shape == (4,)
    assert np.min(np.diff(np.sort(by_layer))) > 1e-3 * by_layer.mean()


@pytest.mark.parametrize(
    ("fields", "moe_layers"),
    [({"moe.first_dense": 1}, [1, 2, 3]), ({"moe.every": 2}, [1, 3]), ({"moe.first_dense": 1, "moe.every": 2}, [2])],
    ids=str,
)
def test_noise_goes_by_the_index_of_the_layer_in_the_model(fields, moe_layers, by_layer):
    np.testing.assert_allclose(z_by_moe_layer(**fields), by_layer[moe_layers], rtol=1e-5)
