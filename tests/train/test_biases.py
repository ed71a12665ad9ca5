"""The bias of every layer moves by what that layer counted, wherever its bias is stored."""

import jax
import jax.numpy as jnp
import numpy as np
from configurations import run_of

from moe_jax.train.biases import moved_biases


def test_what_a_layer_counted_moves_the_bias_of_this_layer():
    """Segment 0 is dense; 1 has two places in two repeats, 2 one in one, with other numbers of experts."""
    fields = {"num_experts": 3, "first_dense": 1, "num_experts_by_layer": (3, 3, 3, 3, 2)}
    fields |= {"bias_rate": 0.5, "bias_update": "proportional"}
    run = run_of({"model.num_layers": 6, **{f"moe.{name}": value for name, value in fields.items()}})
    biases = {"segments": {1: {"a": jnp.zeros((2, 3)), "b": jnp.zeros((2, 3))}, 2: {"a": jnp.ones((1, 2))}}}
    # Layer i has loads 3 - i, 3 + i, 3; the last has 4 and 0.
    sums = [{"choices": 3 + jnp.arange(4.0)[:, None] * jnp.array([-1.0, 1, 0])}, {"choices": jnp.array([[4.0, 0]])}]
    moved = moved_biases(run, biases, sums, jnp.int32(0))
    assert jax.tree.structure(moved) == jax.tree.structure(biases)
    by_hand = lambda layer: layer / 6 * np.array([1, -1, 0])
    np.testing.assert_allclose(moved["segments"][1]["a"], [by_hand(0), by_hand(2)], rtol=1e-6)
    np.testing.assert_allclose(moved["segments"][1]["b"], [by_hand(1), by_hand(3)], rtol=1e-6)
    np.testing.assert_allclose(moved["segments"][2]["a"], [[0.5, 1.5]], rtol=1e-6)


def test_a_model_without_biases_has_nothing_to_move():
    run = run_of({"moe.num_experts": 2})
    assert moved_biases(run, {}, [{"choices": jnp.ones((2, 2))}], jnp.int32(0)) == {}
