"""docs/routers.md is what the registry says today, and what it refers to exists."""

import dataclasses
import re
import runpy
from pathlib import Path

import pytest

from moe_jax.config import MoEConfig
from moe_jax.documentation.routers import document
from moe_jax.moe.plan import DROP_ORDERS
from moe_jax.moe.routers import ROUTERS
from moe_jax.resolve import resolve

ROOT = Path(__file__).parents[2]


def test_the_committed_file_is_what_the_generator_makes():
    assert (ROOT / "docs" / "routers.md").read_text() == document(), "run `make docs`"


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
