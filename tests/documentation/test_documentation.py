"""Causality as it is measured, and docs/routers.md, which is written from it; one file, to measure nothing twice.

Do later tokens change what earlier ones get? Every router, drop order and dispatcher does what its registry says.
"""

import dataclasses
import re
import runpy
from pathlib import Path

import pytest

from moe_jax.config import MoEConfig
from moe_jax.documentation.causality import Case, cases, measure
from moe_jax.documentation.routers import document
from moe_jax.moe.plan import DROP_ORDERS
from moe_jax.moe.routers import ROUTERS
from moe_jax.resolve import resolve

ROOT = Path(__file__).parents[2]
CONTROLS = {"hash", "random"}
PERCENT = r"\b(\d+)%"


def rows(routers):
    """A row for each case; `make test-slow` holds those in which another dispatcher carries out an equal plan."""
    quick = lambda case: case.router == "top_k" or case.dispatcher == ROUTERS[case.router].dispatchers[0]
    marks = lambda case: () if quick(case) else pytest.mark.slow
    return [pytest.param(c, id="-".join(map(str, c)), marks=marks(c)) for c in cases() if c.router in routers]


@pytest.mark.parametrize("case", rows(set(ROUTERS) - CONTROLS))
def test_the_measured_leak_is_what_the_registries_say(case):
    leak = measure(case.config())
    assert ROUTERS[case.router].fills_slots or (leak.dropped > 0.1) == (case.dispatcher != "dropless")
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


@pytest.mark.parametrize("case", rows(CONTROLS))
def test_controls_leak_at_most_what_the_registries_say(case):
    """They are as sure of all tokens, so that priority is by rank alone, and random draws see no token at all."""
    leak = measure(case.config())
    looks_ahead = case.drop_order != "position" and case.top_k > 1
    assert (leak.training > 0.05) == (looks_ahead and case.router == "hash")
    assert (leak.evaluation > 0.05) == looks_ahead
    assert not case.causal or leak.training == leak.evaluation == 0


def test_the_table_has_every_router():
    assert {case.router for case in cases()} == set(ROUTERS)


def test_the_committed_file_is_what_the_generator_makes():
    """But for two points of a measured leak: a change as small as rounding counts on one machine and not on another."""
    committed, made = (ROOT / "docs" / "routers.md").read_text(), document()
    assert re.sub(PERCENT, "%", committed) == re.sub(PERCENT, "%", made), "run `make docs`"
    for one, other in zip(re.findall(PERCENT, committed), re.findall(PERCENT, made), strict=True):
        assert abs(int(one) - int(other)) <= 2, "run `make docs`"


def section_of(name):
    _, found, rest = (ROOT / "docs" / "routers.md").read_text().partition(f"\n## {name}\n")
    assert found, f"docs/routers.md has no section {name}: run `make docs`"
    return rest.split("\n## ")[0]


@pytest.mark.parametrize("name", ROUTERS)
def test_every_router_has_its_section_and_a_file_that_runs_it(name):
    files = re.findall(r"--config=(configs/routers/\w+\.py)", section_of(name))
    assert files
    for file in files:
        moe = resolve(runpy.run_path(str(ROOT / file))["get_config"]()).moe
        assert name in (moe.router, *moe.router_by_layer)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(MoEConfig)])
def test_every_field_is_explained(field):
    rows = re.findall(
        rf"^\| `moe\.{field}` \| .* \| (.*) \|$", (ROOT / "docs" / "routers.md").read_text(), re.MULTILINE
    )
    assert rows and all(rows)


@pytest.mark.parametrize("order", DROP_ORDERS)
def test_every_drop_order_is_explained(order):
    assert f"\n`{order}`: " in (ROOT / "docs" / "routers.md").read_text()
