"""The same result on every mesh in float32 over one step: loss, every gradient, its norm, drops, statistics.

And the variants of the exchange: in pieces, and in bfloat16 on the wire.
"""

import jax
import numpy as np
import pytest
from invariance import MESHES, ROUTINGS, assert_equal_to, dispatchers_of, make_run, on_one_device, over_the_table, train

IN_FLOAT32 = ("expert_choice",)  # in `make test`


@over_the_table(
    ROUTINGS,
    MESHES[:3],
    is_quick=lambda routing, dispatcher, mesh: (
        mesh == MESHES[2] and routing in IN_FLOAT32 and dispatcher == dispatchers_of(routing)[0]
    ),
)
def test_one_step(dispatcher, routing, mesh):
    expected, _ = on_one_device(routing, dispatcher, "float32", 1)
    actual, _ = train(make_run(mesh, routing, dispatcher, "float32"), routing, 1)
    assert_equal_to(expected, actual, 2e-5)


@pytest.mark.parametrize("chunks", [2, 3])
def test_an_exchange_in_pieces_is_the_same_exchange(chunks):
    run = make_run({"data": 2, "expert": 4}, "gshard", "capacity", "float32", **{"moe.exchange_chunks": chunks})
    expected, _ = on_one_device("gshard", "capacity", "float32", 1)
    actual, _ = train(run, "gshard", 1)
    assert_equal_to(expected, actual, 2e-5)


def test_bfloat16_on_the_wire_rounds_what_crosses_it_and_nothing_else():
    """With one MoE layer: rounding before a second router may turn its choice, and then anything may follow."""
    one_layer = {"model.num_layers": 2}
    (metrics, moment), _ = train(make_run({}, "gshard", "capacity", "float32", **one_layer), "gshard", 1)
    rounds = one_layer | {"moe.exchange_dtype": "bfloat16"}
    run = make_run({"data": 2, "expert": 4}, "gshard", "capacity", "float32", **rounds)
    (rounded, rounded_moment), _ = train(run, "gshard", 1)
    np.testing.assert_allclose(rounded.loss, metrics.loss, rtol=2e-3)
    assert rounded.loss != metrics.loss
    close = lambda a, b: np.linalg.norm(a - b) < 0.03 * np.linalg.norm(b) + 1e-6
    assert all(jax.tree.leaves(jax.tree.map(close, rounded_moment, moment)))
    one, _ = train(make_run({}, "gshard", "capacity", "float32", **rounds), "gshard", 1)
    assert_equal_to(one[0].loss, rounded.loss, 1e-5)
