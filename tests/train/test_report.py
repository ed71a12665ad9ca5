import numpy as np
import pytest

from moe_jax.moe.stats import RoutingStats
from moe_jax.train import report
from moe_jax.train.step import StepMetrics

NAN = np.nan
ROUTING = RoutingStats(  # of two layers, the first of one choice a token
    load=np.array([[0.5, 1.5], [0.25, 1.75]]),
    max_violation=np.array([1.0, 5.0]),
    dropped=np.array([0.125, 0.25]),
    dropped_by_rank=np.array([[0.1, NAN], [0.2, 0.4]]),
    dropped_by_position=np.array([[0.0, 0.5], [0.25, 1.0]]),
    passed_through=np.array([0.03125, 0.0625]),
    entropy=np.array([1.5, 2.0]),
    probability_histogram=np.zeros((2, 20)),
)
METRICS = StepMetrics(
    loss=np.float32(3.0),
    balance_loss=np.float32(2.5),
    z_loss=np.float32(7.0),
    importance_loss=np.float32(11.0),
    load_loss=np.float32(13.0),
    grad_norm=np.float32(17.0),
    learning_rate=np.float32(0.75),
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
        "moe/dropped": 0.1875,
        "moe/passed_through": 0.046875,
        "moe/max_violation": 3.0,
        "moe/max_violation_micro_batch": 24.0,
        "moe/max_violation_window": 36.0,
        "moe/router_entropy": 1.75,
        "moe/dropped_layer_0": 0.125,
        "moe/dropped_layer_1": 0.25,
        "moe/max_violation_layer_0": 1.0,
        "moe/max_violation_layer_1": 5.0,
        "moe/dropped_rank_0": 0.15,
        "moe/dropped_rank_1": 0.4,
        "moe/dropped_position_0": 0.125,
        "moe/dropped_position_1": 0.75,
    }
    assert report.scalars(METRICS) == pytest.approx(expected)


def test_losses_of_no_weight_and_a_dense_model_have_no_names():
    weightless = report.scalars(METRICS._replace(importance_loss=None, load_loss=None))
    assert report.scalars(METRICS).keys() - weightless.keys() == {"moe/importance_loss", "moe/load_loss"}
    assert report.scalars(METRICS._replace(routing=None)) == OF_ALL
