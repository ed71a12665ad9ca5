import json

import pytest

from moe_jax.analysis.compare import compare, plot, reaches, table
from moe_jax.analysis.records import Point, read_record


def write_run(workdir, losses, tokens_per_second, sha="same", num_experts=0):
    """A work directory of a run of batches of 2 x 5 tokens that evaluates every 10 steps."""
    workdir.mkdir()
    config = {"data.batch_size": 2, "data.sequence_length": 5, "moe.num_experts": num_experts}
    summary = {"flops_per_token": 7, "total_params": 3, "data_sha256": sha}
    (workdir / "config.json").write_text(json.dumps(config))
    (workdir / "summary.json").write_text(json.dumps(summary))
    lines = []
    for i, loss in enumerate(losses, start=1):
        lines.append({"step": 10 * i, "train/loss": loss, "train/tokens_per_second": tokens_per_second})
        lines.append({"step": 10 * i, "eval/loss": loss})
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return workdir


def test_a_record_adds_up_steps_seconds_and_flops(tmp_path):
    record = read_record(write_run(tmp_path / "run", [3.0, 2.0], tokens_per_second=50))
    assert record.curve == [Point(10, 2.0, 700.0, 3.0), Point(20, 4.0, 1400.0, 2.0)]


def test_the_point_of_reaching_a_loss_is_interpolated():
    curve = [Point(10, 1.0, 100.0, 3.0), Point(20, 2.0, 200.0, 2.0), Point(30, 3.0, 300.0, 1.8)]
    assert reaches(curve, 2.25) == pytest.approx(Point(17.5, 1.75, 175.0, 2.25))
    assert reaches(curve, 3.5).step == 10  # already there at the first evaluation
    assert reaches(curve, 1.0) is None


def test_ratios_are_those_of_the_baseline_to_each_run(tmp_path):
    dense = write_run(tmp_path / "dense", [3.0, 2.5, 2.2, 2.0], tokens_per_second=100)
    sparse = write_run(tmp_path / "sparse", [2.5, 2.0, 1.5, 1.4], tokens_per_second=80, num_experts=4)
    worse = write_run(tmp_path / "worse", [4.0, 3.0, 2.9, 2.8], tokens_per_second=80)
    records = [read_record(path) for path in (dense, sparse, worse)]
    result = compare(records)
    assert result["loss"] == 2.0
    assert result["runs"]["dense"]["times_fewer_steps"] == 1
    assert result["runs"]["sparse"]["times_fewer_steps"] == 2  # step 20 of 40
    assert result["runs"]["sparse"]["times_less_time"] == pytest.approx(2 * 80 / 100)
    assert result["runs"]["worse"]["steps_to_loss"] is None
    assert result["differences"] == {"moe.num_experts": {"dense": 0, "sparse": 4, "worse": 0}}
    assert "| sparse | 3 | 7 | 1.4000 | 20 | 2.00x | 1.60x |" in table(result)
    assert "not reached" in table(result)
    assert [len(axis.lines) for axis in plot(records).axes] == [3, 3, 3]


def test_runs_on_different_data_are_not_compared(tmp_path):
    records = [
        read_record(write_run(tmp_path / "a", [1.0], 1)),
        read_record(write_run(tmp_path / "b", [1.0], 1, sha="other")),
    ]
    with pytest.raises(ValueError, match="different data"):
        compare(records)


def test_an_unfinished_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no finished run"):
        read_record(tmp_path)
