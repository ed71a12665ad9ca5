"""The same result on every mesh in float64: first step and gradients, and the weights after five steps, to 1e-10."""

import jax
import numpy as np
from invariance import assert_equal_to, make_run, on_one_device, over_the_table, train

STEPS = 5


@over_the_table
def test_five_steps(dispatcher, top_k, mesh):
    with jax.enable_x64(True):
        expected = on_one_device(top_k, dispatcher, "float64", STEPS)
        metrics, _ = expected[0]
        assert np.all(metrics.routing.dropped > 0.01)
        assert_equal_to(expected, train(make_run(mesh, top_k, dispatcher, "float64"), STEPS), 1e-10)
