"""The same result on every mesh in float64: first step and gradients, and the weights after five steps, to 1e-10."""

from invariance import MESHES, ROUTINGS, assert_same_five_steps, over_the_table


@over_the_table(ROUTINGS, MESHES)
def test_five_steps(routing, dispatcher, mesh):
    assert_same_five_steps(routing, dispatcher, mesh)
