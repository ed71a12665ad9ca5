"""The same result on every mesh in float64: first step and gradients, and the weights after five steps, to 1e-10."""

import jax
import numpy as np
from invariance import MESHES, assert_equal_to, make_run, on_one_device, over_the_table, train

from moe_jax.moe.routers import ROUTERS

STEPS = 5


@over_the_table(MESHES)
def test_five_steps(dispatcher, routing, mesh):
    with jax.enable_x64(True):
        expected = on_one_device(routing, dispatcher, "float64", STEPS)
        metrics, _ = expected[0]
        run = make_run(mesh, routing, dispatcher, "float64")
        assert ROUTERS[run.moe.router].fills_slots or np.all(metrics.routing.dropped > 0.01)
        assert_equal_to(expected, train(run, routing, STEPS), 1e-10)
