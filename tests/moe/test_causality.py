"""Do later tokens change what earlier ones get? Every router, drop order and dispatcher does what its registry says."""

import pytest

from moe_jax.analysis.causality import Case, cases, measure
from moe_jax.moe.routers import ROUTERS


def is_first_come(case):
    """Routers that learn nothing are equally sure of all tokens: their priority is by rank, then by position."""
    return case.router in ("hash", "random") and case.drop_order == "priority" and case.top_k == 1


@pytest.mark.parametrize("case", cases(), ids=lambda case: "-".join(map(str, case)))
def test_the_measured_leak_is_what_the_registries_say(case):
    leak = measure(case.config())
    assert ROUTERS[case.router].fills_slots or leak.dropped > 0.1
    for measured, causal in ((leak.training, case.causal), (leak.evaluation, case.causal_in_evaluation)):
        assert measured == 0 if causal or is_first_come(case) else measured > 0.05


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_position_is_causal_for_any_number_of_choices(top_k):
    leak = measure(Case("top_k", top_k, "position", "capacity").config())
    assert leak.dropped > 0.1
    assert leak.training == leak.evaluation == 0


@pytest.mark.parametrize("order", ["choice", "priority"])
def test_nothing_leaks_where_nothing_is_dropped(order):
    leak = measure(Case("top_k", 2, order, "capacity").config(capacity_factor=4.0))
    assert leak == (0, 0, 0)


def test_the_table_has_every_router():
    assert {case.router for case in cases()} == set(ROUTERS)
