"""The files of `configs/routers/`: one for each router, of the size of `switch_small.py`."""

import re

import pytest
from configurations import ROOT, load

from moe_jax.config.schema import MeshConfig
from moe_jax.moe.routers import ROUTERS
from moe_jax.parallel.mesh import make_mesh
from moe_jax.resolve.counting import count
from moe_jax.tasks.registry import task_of
from moe_jax.train.state import build_model, num_params

FILES = sorted(path.stem for path in (ROOT / "configs" / "routers").glob("*.py"))


@pytest.mark.parametrize("name", FILES)
def test_has_the_flops_of_switch_small_and_names_its_paper(name):
    header, run = load(f"routers/{name}.py")
    flops = count(run).flops_per_token / count(load("switch_small.py").run).flops_per_token
    assert 0.97 < flops < 1.03
    assert re.search(r"\b20\d\d\b", header) or name == "random"


@pytest.mark.parametrize("name", FILES)
def test_its_parameters_are_those_of_the_real_weights(name):
    run = load(f"routers/{name}.py").run
    assert count(run).total_params == num_params(build_model(task_of(run), make_mesh(MeshConfig())).shapes)


def test_every_router_has_a_file():
    runs = [load(f"routers/{name}.py").run for name in FILES]
    named = {run.moe.router for run in runs}.union(*(run.moe.router_by_layer for run in runs))
    missing = sorted(set(ROUTERS) - named)
    assert not missing, f"configs/routers/ has no file with {missing}"
