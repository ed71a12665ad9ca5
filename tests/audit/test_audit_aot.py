"""experiments/audit.py end to end, for one small TPU and one small GPU target. `make test-aot` has the compilers."""

import json
import os
import subprocess
import sys

import pytest
from configurations import ROOT

pytestmark = pytest.mark.aot
TINY = [
    "--config=configs/switch_small.py", "--config.model.num_layers=2", "--config.model.dtype=bfloat16",
    "--config.data.batch_size=32", "--config.mesh.data=1", "--config.train.accumulate=1",
]  # fmt: skip


def audit(workdir, *arguments):
    command = [sys.executable, "experiments/audit.py", f"--workdir={workdir}", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(("target", "devices"), [("v5p:2x2x1", 4), ("h100:4", 4)])
def test_a_step_of_training(target, devices, tmp_path):
    arguments = [*TINY, f"--config.mesh.expert={devices}", f"--target={target}"]
    ended = audit(tmp_path, *arguments)
    assert ended.returncode == 0, ended.stderr
    record = json.loads((tmp_path / "audit.json").read_text())
    assert record["target"] == target and record["devices"] == devices and record["fits"]
    assert 0 < record["step_time_lower_s"] < record["schedule"]["seconds"] < record["step_time_upper_s"]
    assert record["flops_per_device"] >= record["model_flops_per_device"] > 0
    assert (record["compiler"] is not None) == target.startswith("v5p")
    assert record["tokens_per_second"] == pytest.approx(record["tokens_per_step"] / record["step_time_s"])
    assert sum(one["seconds"] for one in record["lines"]) <= record["step_time_s"] * (1 + 1e-9)
    assert any("moe/" in one["line"] for one in record["lines"])
    dearer = audit(tmp_path, *arguments, "--constants=price=100")
    assert dearer.returncode == 0 and "nothing is compiled" in dearer.stderr
    again = json.loads((tmp_path / "audit.json").read_text())
    assert again["step_time_s"] == record["step_time_s"]
    hours = record["chip_hours_per_million_tokens"]
    assert again["cost_per_million_tokens"] == pytest.approx(100 * hours)


def test_targets_side_by_side_and_one_that_is_none(tmp_path):
    ended = audit(
        tmp_path, *TINY, "--config.mesh.expert=4", "--mode=decode", "--places=8", "--length=256",
        "--target=v6e:2x2,v5p:3x3x3",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    good, bad = json.loads((tmp_path / "audit.json").read_text())["targets"]
    assert good["mode"] == "decode" and good["tokens_per_step"] == 8 and good["step_time_s"] > 0
    assert "is not a topology of v5p" in bad["error"]
