"""The first step of every other router on eight devices is that on one: draws, groups of tokens and biases included."""

import jax
import pytest
from invariance import OTHER_ROUTINGS, ROUTINGS, assert_equal_to, make_run, train

from moe_jax.moe.routers import ROUTERS

MESH = {"data": 2, "expert": 2, "tensor": 2}


@pytest.mark.parametrize("routing", OTHER_ROUTINGS)
def test_results_do_not_depend_on_the_mesh(routing):
    with jax.enable_x64(True):
        runs = (make_run(mesh, routing, "capacity", "float64") for mesh in ({}, MESH))
        expected, actual = (train(run, routing, 1) for run in runs)
        assert_equal_to(expected, actual, 1e-9)


def test_every_router_is_in_the_tables():
    assert {fields["moe.router"] for fields in (ROUTINGS | OTHER_ROUTINGS).values()} == set(ROUTERS)
