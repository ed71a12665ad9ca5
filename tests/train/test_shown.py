import json

import numpy as np
import pytest

from moe_jax.journal.metrics import MetricsWriter
from moe_jax.moe.measures import MEASURES
from moe_jax.train.shown import curves, write_loads
from moe_jax.train.step import StepMetrics


def one_layer(load, **numbers):
    """The statistics of a segment of one layer; those not given are zeros."""
    shapes = {"": (), "rank": (len(numbers["dropped_fraction_rank"]),), "position": (2,), "bin": (20,), "expert": ()}
    stats = {name: np.zeros((1, *shapes[measure.per])) for name, measure in MEASURES.items()}
    return stats | {name: np.array([value]) for name, value in ({"load": load} | numbers).items()}


ROUTING = (  # two layers, the first of two experts and one choice a token
    one_layer(
        [0.5, 1.5], max_violation=1.0, dropped_fraction=0.125, dropped_fraction_rank=[0.1], passed_through=0.03125,
        dropped_fraction_position=[0.0, 0.5], router_entropy=1.5, experts_per_token=1.0,
    ),
    one_layer(
        [0.25, 1.75, 1.0], max_violation=5.0, dropped_fraction=0.25, dropped_fraction_rank=[0.2, 0.4],
        passed_through=0.0625, dropped_fraction_position=[0.25, 1.0], router_entropy=2.0, experts_per_token=1.5,
    ),
)  # fmt: skip
METRICS = StepMetrics(
    loss=np.float32(3.0),
    auxiliary={
        "balance_loss": np.float32(2.5),
        "z_loss": np.float32(7.0),
        "importance_loss": np.float32(11.0),
        "load_loss": np.float32(13.0),
    },
    grad_norm=np.float32(17.0),
    learning_rate=np.float32(0.75),
    finite=np.ones(3, bool),
    routing=ROUTING,
    max_violation_micro_batch=np.array([19.0, 29.0]),
    max_violation_window=np.array([31.0, 41.0]),
)
OF_ALL = {"train/loss": 3.0, "train/grad_norm": 17.0, "train/learning_rate": 0.75}


def test_every_scalar_has_its_name():
    expected = OF_ALL | {
        "moe/balance_loss": 2.5,
        "moe/z_loss": 7.0,
        "moe/importance_loss": 11.0,
        "moe/load_loss": 13.0,
        "moe/dropped_fraction": 0.1875,
        "moe/passed_through": 0.046875,
        "moe/max_violation": 3.0,
        "moe/max_violation_micro_batch": 24.0,
        "moe/max_violation_window": 36.0,
        "moe/router_entropy": 1.75,
        "moe/experts_per_token": 1.25,
        "moe/dropped_fraction_layer_0": 0.125,
        "moe/dropped_fraction_layer_1": 0.25,
        "moe/max_violation_layer_0": 1.0,
        "moe/max_violation_layer_1": 5.0,
        "moe/dropped_fraction_rank_0": 0.15,
        "moe/dropped_fraction_rank_1": 0.4,
        "moe/dropped_fraction_position_0": 0.125,
        "moe/dropped_fraction_position_1": 0.75,
    }
    assert curves(METRICS) == pytest.approx(expected)


def test_losses_of_no_weight_and_a_dense_model_have_no_names():
    shown = {name: METRICS.auxiliary[name] for name in ("balance_loss", "z_loss")}
    weightless = curves(METRICS._replace(auxiliary=shown))
    assert curves(METRICS).keys() - weightless.keys() == {"moe/importance_loss", "moe/load_loss"}
    assert curves(METRICS._replace(routing=(), max_violation_micro_batch=None, max_violation_window=None)) == OF_ALL


def test_the_load_of_every_expert_is_a_list_for_each_layer(tmp_path):
    """Of as many experts as the layer has; a load that is not a number is null, as everywhere in the file."""
    diverged = ROUTING[1] | {"load": np.array([[np.nan, 1.0, np.inf]])}
    with MetricsWriter(tmp_path) as writer:
        write_loads(writer, 3, METRICS)
        write_loads(writer, 4, METRICS._replace(routing=(ROUTING[0], diverged)))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    first = {"moe/load/layer_00": [0.5, 1.5]}
    assert lines == [
        {"step": 3, **first, "moe/load/layer_01": [0.25, 1.75, 1.0]},
        {"step": 4, **first, "moe/load/layer_01": [None, 1.0, None]},
    ]
