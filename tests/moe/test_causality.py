"""Do later tokens change what earlier ones get? Measured by changing them."""

import numpy as np
import pytest
from one_device import apply, make_layer

from moe_jax.config import MoEConfig
from moe_jax.moe.dispatch import DISPATCHERS

T, D = 64, 8


def leak(top_k: int, drop_order: str, dispatcher: str = "capacity", capacity_factor: float = 0.5) -> float:
    """Fraction of the first half's tokens whose output changes when the second half is replaced."""
    moe = MoEConfig(
        num_experts=4, router="top_k", top_k=top_k, drop_order=drop_order, dispatcher=dispatcher, d_ff=8,
        activation="relu", group_size=T, capacity_factor=capacity_factor,
    )  # fmt: skip
    layer = make_layer(moe, D)
    x = np.random.default_rng(0).normal(size=(8, T, D)).astype(np.float32)
    other = x.copy()
    other[:, T // 2 :] = np.random.default_rng(1).normal(size=(8, T // 2, D))
    (y, sums), (y_other, _) = apply(layer, x), apply(layer, other)
    assert sums.dropped_by_rank.sum() > 0 or capacity_factor > 1
    return float(np.mean(np.any(y[:, : T // 2] != y_other[:, : T // 2], axis=-1)))


@pytest.mark.parametrize("dispatcher", DISPATCHERS)
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_position_is_causal(top_k, dispatcher):
    assert leak(top_k, "position", dispatcher) == 0


def test_choice_is_causal_for_one_choice_only():
    assert leak(1, "choice") == 0
    assert leak(2, "choice") > 0.05


@pytest.mark.parametrize("top_k", [1, 2])
def test_priority_is_not_causal(top_k):
    assert leak(top_k, "priority") > 0.05


@pytest.mark.parametrize("order", ["choice", "priority"])
def test_nothing_leaks_where_nothing_is_dropped(order):
    assert leak(2, order, capacity_factor=4.0) == 0
