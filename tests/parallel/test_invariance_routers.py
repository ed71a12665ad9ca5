"""The other routers in float64, as in test_invariance_float64.py: draws, groups of tokens and biases included."""

from invariance import ALL_ROUTINGS, MESHES, OTHER_ROUTINGS, assert_same_five_steps, over_the_table

from moe_jax.moe.routers import ROUTERS


@over_the_table(OTHER_ROUTINGS, MESHES)
def test_five_steps(routing, dispatcher, mesh):
    assert_same_five_steps(routing, dispatcher, mesh)


def test_every_router_is_in_the_tables():
    named = {name for row in ALL_ROUTINGS.values() for name in (row["moe.router"], *row.get("moe.router_by_layer", ()))}
    missing = sorted(set(ROUTERS) - named)
    assert not missing, f"tests/helpers/invariance.py has no row of {missing}"
