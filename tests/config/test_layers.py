import pytest
from configurations import run_of

from moe_jax.config.layers import DenseSpec, moe_by_layer, moe_segments, num_moe_layers, segments

D, M = "dense", "moe"


def kinds(part):
    """The pattern of a segment in letters; every layer attends as the run says."""
    return tuple(D if isinstance(layer.feed_forward, DenseSpec) else M for layer in part.pattern)


@pytest.mark.parametrize(
    ("layers", "moe", "expected", "moe_layers"),
    [
        (3, {"num_experts": 0}, [((D,), 3)], 0),
        (3, {"num_experts": 0, "every": 2, "first_dense": 1}, [((D,), 3)], 0),
        (4, {}, [((M,), 4)], 4),
        (1, {}, [((M,), 1)], 1),
        (6, {"every": 2}, [((D, M), 3)], 3),
        (7, {"every": 2}, [((D, M), 3), ((D,), 1)], 3),
        (8, {"every": 3}, [((D, D, M), 2), ((D,), 2)], 2),
        (5, {"first_dense": 3}, [((D,), 3), ((M,), 2)], 2),
        (6, {"first_dense": 1, "every": 2}, [((D,), 1), ((D, M), 2), ((D,), 1)], 2),
        (3, {"first_dense": 1, "every": 2}, [((D,), 1), ((D, M), 1)], 1),
    ],
)
def test_segments(layers, moe, expected, moe_layers):
    fields = {"num_experts": 2, **moe}
    run = run_of({"model.num_layers": layers, **{f"moe.{name}": value for name, value in fields.items()}})
    assert [(kinds(part), part.repeats) for part in segments(run)] == expected
    assert num_moe_layers(run) == moe_layers
    assert [part.num_moe_layers for part in moe_segments(run)] == [
        n for part in segments(run) if (n := part.num_moe_layers)
    ]
    assert sum(part.num_moe_layers for part in moe_segments(run)) == moe_layers
    assert sum(part.num_layers for part in segments(run)) == layers
    assert {layer.attention for part in segments(run) for layer in part.pattern} == {run.attention}
    assert {layer.feed_forward for part in segments(run) for layer in part.pattern if layer.moe is None} <= {
        DenseSpec(run.model.d_ff, run.model.activation)
    }


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"num_experts_by_layer": (4, 4, 4, 4)}, [((M,), 4, 4, 1.25)]),
        ({"num_experts_by_layer": (2, 4, 4, 2)}, [((M,), 1, 2, 1.25), ((M,), 2, 4, 1.25), ((M,), 1, 2, 1.25)]),
        ({"every": 2, "capacity_factor_by_layer": (0.5, 1.25)}, [((D, M), 1, 4, 0.5), ((D, M), 1, 4, 1.25)]),
        (
            {"first_dense": 2, "num_experts_by_layer": (2, 4), "capacity_factor_by_layer": (1.25, 1.25)},
            [((D,), 2, None, None), ((M,), 1, 2, 1.25), ((M,), 1, 4, 1.25)],
        ),
        ({"router_by_layer": ("top_k", "top_k", "switch", "switch")}, [((M,), 2, 4, 1.25), ((M,), 2, 4, 1.25)]),
    ],
)
def test_neighbours_of_equal_settings_share_a_segment(fields, expected):
    run = run_of({"model.num_layers": 4, "moe.num_experts": 4, **{f"moe.{name}": v for name, v in fields.items()}})
    settings = lambda moe: (None, None) if moe is None else (moe.num_experts, moe.capacity_factor)
    assert [(kinds(part), part.repeats, *settings(part.moe)) for part in segments(run)] == expected
    assert len(moe_by_layer(run)) == num_moe_layers(run)
