"""A run trained on one mesh is evaluated, and continued, on another."""

import json

import numpy as np

from moe_jax.train.evaluate_checkpoint import evaluate_checkpoint
from moe_jax.train.loop import train

MESHES = ({}, {"mesh.expert": 2, "mesh.fsdp": 2, "mesh.tensor": 2}, {"mesh.data": 2, "mesh.expert": 4})


def test_eight_devices_to_others_and_back(make_run, tmp_path):
    devices = lambda mesh: int(np.prod(list(mesh.values()), dtype=int))
    trained = MESHES[1]
    assert train(make_run(trained, devices(trained)), tmp_path) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())

    losses, dropped = [], []
    for mesh in MESHES:
        evaluate_checkpoint(make_run(mesh, devices(mesh)), tmp_path)
        result = json.loads((tmp_path / "eval.json").read_text())
        losses.append(result["loss"])
        dropped.append(result["dropped_fraction"])
    np.testing.assert_allclose(losses, summary["eval_loss"], rtol=1e-6)
    assert len(set(dropped)) == 1

    longer = make_run(MESHES[2] | {"train.steps": 8}, 8)
    assert train(longer, tmp_path) == 0
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps) and steps[-1] == 8
    assert json.loads((tmp_path / "summary.json").read_text())["eval_loss"] != summary["eval_loss"]
