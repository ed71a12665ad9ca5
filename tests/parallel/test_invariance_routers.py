"""Two steps of every other router on eight devices are those on one: draws, groups of tokens and biases included."""

import jax
import pytest
from invariance import OTHER_ROUTINGS, ROUTINGS, assert_equal_to, make_run, train

from moe_jax.moe.routers import ROUTERS

SPLIT_ALL_WAYS, MANY_COPIES = {"fsdp": 2, "expert": 2, "tensor": 2}, {"data": 4, "expert": 2}


@pytest.mark.parametrize(
    ("routing", "dispatcher", "mesh"),
    [
        *((routing, "capacity", SPLIT_ALL_WAYS) for routing in OTHER_ROUTINGS),
        ("deepseek_v3", "einsum", MANY_COPIES),
        ("random", "einsum", MANY_COPIES),
    ],
    ids=str,
)
def test_results_do_not_depend_on_the_mesh(routing, dispatcher, mesh):
    with jax.enable_x64(True):
        runs = (make_run(sizes, routing, dispatcher, "float64") for sizes in ({}, mesh))
        expected, actual = (train(run, routing, 2) for run in runs)
        assert_equal_to(expected, actual, 1e-9)


def test_every_router_is_in_the_tables():
    assert {fields["moe.router"] for fields in (ROUTINGS | OTHER_ROUTINGS).values()} == set(ROUTERS)
