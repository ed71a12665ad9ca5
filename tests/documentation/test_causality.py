"""Do later tokens change what earlier ones get? Every router, drop order and dispatcher does what its registry says."""

import pytest

from moe_jax.documentation.causality import Case, cases, measure
from moe_jax.moe.routers import ROUTERS

CONTROLS = ("hash", "random")
name = lambda case: "-".join(map(str, case))


@pytest.mark.parametrize("case", [c for c in cases() if c.router not in CONTROLS], ids=name)
def test_the_measured_leak_is_what_the_registries_say(case):
    leak = measure(case.config())
    assert ROUTERS[case.router].fills_slots or leak.dropped > 0.1
    for measured, causal in ((leak.training, case.causal), (leak.evaluation, case.causal_in_evaluation)):
        assert measured == 0 if causal else measured > 0.05


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_position_is_causal_for_any_number_of_choices(top_k):
    leak = measure(Case("top_k", top_k, "position", "capacity").config())
    assert leak.dropped > 0.1
    assert leak.training == leak.evaluation == 0


@pytest.mark.parametrize("order", ["choice", "priority"])
def test_nothing_leaks_where_nothing_is_dropped(order):
    leak = measure(Case("top_k", 2, order, "capacity").config(capacity_factor=4.0))
    assert leak == (0, 0, 0)


@pytest.mark.parametrize("case", [c for c in cases() if c.router in CONTROLS], ids=name)
def test_controls_leak_at_most_what_the_registries_say(case):
    """They are as sure of all tokens, so that priority is by rank alone, and random draws see no token at all."""
    leak = measure(case.config())
    looks_ahead = case.drop_order != "position" and case.top_k > 1
    assert (leak.training > 0.05) == (looks_ahead and case.router == "hash")
    assert (leak.evaluation > 0.05) == looks_ahead
    assert not case.causal or leak.training == leak.evaluation == 0


def test_the_table_has_every_router():
    assert {case.router for case in cases()} == set(ROUTERS)
