"""Do later tokens change what earlier ones get? Measured by changing them."""

import numpy as np
import pytest
from one_device import apply, make_layer

from moe_jax.config import MoEConfig
from moe_jax.moe.dispatch import DISPATCHERS
from moe_jax.moe.routers import ROUTERS

T, D = 64, 8


def leak(
    top_k: int,
    drop_order: str,
    dispatcher: str = "capacity",
    capacity_factor: float = 0.5,
    router: str = "top_k",
    train: bool = True,
) -> float:
    """Fraction of the first half's tokens whose output changes when the second half is replaced."""
    moe = MoEConfig(
        num_experts=4, router=router, top_k=top_k, drop_order=drop_order, dispatcher=dispatcher, d_ff=8,
        activation="relu", group_size=T, capacity_factor=capacity_factor, eval_capacity_factor=capacity_factor,
    )  # fmt: skip
    layer = make_layer(moe, D)
    x = np.random.default_rng(0).normal(size=(8, T, D)).astype(np.float32)
    other = x.copy()
    other[:, T // 2 :] = np.random.default_rng(1).normal(size=(8, T // 2, D))
    (y, sums), (y_other, _) = apply(layer, x, train=train), apply(layer, other, train=train)
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


@pytest.mark.parametrize("name", ROUTERS)
def test_a_router_that_says_it_is_causal_is(name):
    """Nothing is dropped, so what leaks is the choice itself."""
    top_k = ROUTERS[name].required_top_k or 2
    in_training = leak(top_k, "position", capacity_factor=4.0, router=name)
    assert in_training == 0 if ROUTERS[name].causal else in_training > 0.05
    assert leak(top_k, "position", capacity_factor=4.0, router=name, train=False) == 0
