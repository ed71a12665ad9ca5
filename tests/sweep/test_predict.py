"""Predictions beside a sweep's points. The hardware that is not there is this CPU, as eight devices."""

import json

import jax
import pytest
from configurations import run_of

from moe_jax.audit.targets import Target
from moe_jax.config.rules import ConfigError
from moe_jax.parallel.chips import Chip
from moe_jax.sweep import predict as module
from moe_jax.sweep.cells import Cell
from moe_jax.sweep.predict import FILE, check_mesh, predict, section

CHIP = Chip(flops=1e11, memory=1e10, bandwidth=1e10, link=1e9, price=3.6)
SMALL = {"data.batch_size": 8, "data.sequence_length": 32, "moe.group_size": 32, "model.num_layers": 1}


def cell(experts, seed=0):
    point = {"moe.num_experts": experts}
    run = run_of({**SMALL, **point, "moe.top_k": 1})
    return Cell(f"num_experts={experts},seed={seed}", point, {}, run, None)


@pytest.fixture
def target(monkeypatch):
    monkeypatch.setattr(module, "target_of", lambda name: Target(name, jax.devices(), CHIP, 8))


def test_each_point_once_and_what_cannot_run_with_its_reason(target, tmp_path, caplog):
    cells = [cell(experts, seed) for seed in (0, 1) for experts in (4, 6)]
    predict(cells, "cpu:8", {"data": 2, "expert": 4}, tmp_path)
    points = json.loads((tmp_path / FILE).read_text())["points"]
    assert list(points) == ["num_experts=4", "num_experts=6"]
    good = points["num_experts=4"]
    assert good["mesh"] == {"data": 2, "fsdp": 1, "expert": 4, "tensor": 1} and good["fits"]
    assert 0 < good["step_time_lower_s"] <= good["step_time_s"] and 0 < good["exchange_share"] <= good["idle_share"] < 1
    tokens = 8 * 32
    assert good["cost_per_million_tokens"] == pytest.approx(8 * 3.6 / 3600 * good["step_time_s"] / tokens * 1e6)
    assert "mesh.expert=4" in points["num_experts=6"]["error"]
    heading, _, table = section(tmp_path)
    assert heading == "## Predicted on cpu:8"
    rows = [[part.strip() for part in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert rows[0][0] == "num_experts=4" and rows[0][4] == f"{good['exchange_share']:.1%}"
    assert rows[1][:2] == ["num_experts=6", points["num_experts=6"]["error"]]
    (tmp_path / FILE).write_text("{")
    assert section(tmp_path) == [] and "is damaged" in caplog.text


def test_experts_go_over_as_many_devices_as_they_allow(target, tmp_path, monkeypatch):
    meshes = []
    monkeypatch.setattr(module, "cached", lambda folder, name, run, mesh, work: meshes.append(dict(mesh.shape)))
    monkeypatch.setattr(module, "audit", lambda *arguments: {})
    predict([cell(4), cell(6), cell(64)], "cpu:8", {}, tmp_path)
    assert [(mesh["data"], mesh["expert"]) for mesh in meshes] == [(2, 4), (4, 2), (1, 8)]


def test_no_predictions(tmp_path):
    assert section(tmp_path) == []
    with pytest.raises(ConfigError, match="experts is no mesh axis"):
        check_mesh({"experts": 2})
