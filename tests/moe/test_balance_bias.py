import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.config import MoEConfig
from moe_jax.moe.bias_updates import BIAS_UPDATES, updated_bias
from moe_jax.moe.measures import max_violation


def move(bias, assigned, step=0, **fields):
    moe = MoEConfig(num_experts=np.shape(assigned)[-1] - fields.get("null_experts", 0), bias_rate=0.5, **fields)
    update = BIAS_UPDATES[moe.bias_update]
    return np.asarray(updated_bias(jnp.asarray(bias), jnp.asarray(assigned), jnp.int32(step), moe, update))


def test_by_hand():
    """Loads 1, 3, 5, 3 of mean 3: the idle expert up, the busy one down, the others stay."""
    np.testing.assert_array_equal(move([0.0, 1, 2, 3], [1.0, 3, 5, 3]), [0.5, 1, 1.5, 3])
    proportional = move([0.0, 1, 2, 3], [1.0, 3, 5, 3], bias_update="proportional")
    np.testing.assert_allclose(proportional, [0.5 * 2 / 3, 1, 2 - 0.5 * 2 / 3, 3], rtol=1e-6)


def test_null_experts_have_a_bias_that_moves_too():
    np.testing.assert_array_equal(move([0.0, 1, 2, 3], [5.0, 3, 1, 3], null_experts=2), [-0.5, 1, 2.5, 3])


@pytest.mark.parametrize("update", ["sign", "proportional"])
def test_equals_a_loop_over_layers_and_experts(update):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        bias, assigned = rng.normal(size=(3, 5)), rng.integers(0, 9, (3, 5)).astype(float)
        assigned[1] = [4, 4, 4, 4, 4]
        assigned[2] = 0  # a step of padding alone
        expected = bias.copy()
        for layer in range(3):
            mean = sum(assigned[layer]) / 5
            for i in range(5):
                error = mean - assigned[layer, i]
                if update == "sign":
                    expected[layer, i] += 0.5 * (1 if error > 0 else -1 if error < 0 else 0)
                elif mean:
                    expected[layer, i] += 0.5 * error / mean
        np.testing.assert_allclose(move(bias, assigned, bias_update=update), expected, rtol=1e-12)
        assert np.any(expected[0] != bias[0])


@pytest.mark.parametrize(("steps", "moving"), [(0, (0, 1, 2, 1000)), (2, (0, 1))])
def test_it_moves_in_the_first_steps_only(steps, moving):
    for step in (0, 1, 2, 1000):
        moved = move([0.0, 0], [1.0, 3], step, bias_steps=steps)
        np.testing.assert_array_equal(moved, [0.5, -0.5] if step in moving else [0, 0])


def test_max_violation_by_hand():
    # Means 3 and 2: (7 - 3) / 3, and balance; no choices.
    loads = jnp.array([[1.0, 1, 7], [2, 2, 2], [0, 0, 0]])
    np.testing.assert_allclose(max_violation(loads), [4 / 3, 0, 0], rtol=1e-6)
