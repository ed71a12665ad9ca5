import math

import pytest
from work_directories import cell, unfinished

from moe_jax.report.points import gather, matches, short_names
from moe_jax.report.savings import Saving, baselines, savings


def test_cells_of_one_point_are_gathered_in_the_order_of_the_grid(tmp_path):
    cells = [cell(tmp_path, {"moe.top_k": k, "moe.z_loss": 0.0}, seed, [float(k)]) for seed in (1, 0) for k in (2, 1)]
    sweep = gather(cells)
    assert [point.label for point in sweep.points] == ["top_k=2", "top_k=1"]
    assert sweep.varying == ["moe.top_k"]
    assert [list(point.runs) for point in sweep.points] == [[0, 1], [0, 1]]
    assert [point.losses for point in sweep.points] == [[2.0, 2.0], [1.0, 1.0]]
    assert len(sweep.records) == 4


def test_fields_that_end_alike_keep_their_whole_names():
    assert short_names(["moe.d_ff", "model.d_ff", "moe.top_k"]) == {
        "moe.d_ff": "moe.d_ff",
        "model.d_ff": "model.d_ff",
        "moe.top_k": "top_k",
    }


def test_unfinished_cells_stay_with_their_points(tmp_path):
    cells = [
        cell(tmp_path, {"a.b": 1}, 0, [2.0]),
        unfinished(tmp_path, {"a.b": 1}, 1, "failed", "boom"),
        unfinished(tmp_path, {"a.b": 2}, 0, "pending"),
    ]
    first, second = gather(cells).points
    assert (len(first.cells), list(first.runs), first.comparable) == (2, [0], True)
    assert (len(second.cells), list(second.runs), second.comparable) == (1, [], False)


def test_a_finished_cell_that_cannot_be_read_has_failed(tmp_path):
    broken = cell(tmp_path, {"a.b": 2}, 0, [2.0])
    (broken.workdir / "metrics.jsonl").unlink()
    sweep = gather([cell(tmp_path, {"a.b": 1}, 0, [2.0]), broken])
    assert sweep.cells[1].status == "failed"
    assert "holds no finished run" in sweep.cells[1].error


def test_no_finished_cell_is_refused_with_the_first_failure(tmp_path):
    cells = [
        unfinished(tmp_path, {"a.b": 1}, 0, "pending"),
        unfinished(tmp_path, {"a.b": 1}, 1, "failed", "boom"),
        unfinished(tmp_path, {"a.b": 1}, 2, "failed", "bang"),
    ]
    with pytest.raises(
        ValueError, match=r"no cell .* finished \(2 failed, 1 pending\): .*first failure: .*seed=1: boom"
    ):
        gather(cells)
    with pytest.raises(ValueError, match=r"\(1 pending\): run the sweep to its end first$"):
        gather(cells[:1])


def test_the_same_cell_twice_is_refused(tmp_path):
    one = cell(tmp_path, {"a.b": 1}, 0, [2.0])
    with pytest.raises(ValueError, match="twice with the same seed"):
        gather([one, one])


def test_a_point_matches_a_part_of_it_lists_like_tuples():
    point = {"data.weights": [0.5, 0.5], "moe.num_experts": 4}
    assert matches(point, {"data.weights": (0.5, 0.5)})
    assert matches(point, {})
    assert not matches(point, {"moe.num_experts": 8})
    assert not matches(point, {"moe.top_k": 1})


def test_of_several_baselines_a_point_takes_the_one_that_differs_in_nothing_else(tmp_path):
    grid = [{"e": e, "c": c} for e in (0, 4) for c in (1, 2)]
    sweep = gather([cell(tmp_path, point, 0, [2.0]) for point in grid[:3]])
    assert [point.point for point in baselines(sweep, {"e": 0})] == [grid[0], grid[1], grid[0]]
    assert [point.point for point in baselines(sweep, {"e": 0, "c": 2})] == [grid[1]] * 3
    assert [point.point for point in baselines(sweep, {"e": 4})] == [grid[2]] * 3  # the only one
    lonely = gather([cell(tmp_path / "b", point, 0, [2.0]) for point in (*grid[:2], {"e": 4, "c": 3})])
    assert baselines(lonely, {"e": 0})[2] is None


def test_a_baseline_that_is_not_in_the_sweep_is_refused(tmp_path):
    sweep = gather([cell(tmp_path, {"e": 4}, 0, [2.0])])
    with pytest.raises(ValueError, match="no point of the sweep has e=0: add it to the sweep, or name another"):
        baselines(sweep, {"e": 0})


def test_a_run_is_measured_against_the_baseline_of_its_seed(tmp_path):
    cells = [
        cell(tmp_path, {"e": 0}, 0, [4.0, 3.0, 2.5, 2.0]),  # step 40, 8 s, 2,800 FLOPs
        cell(tmp_path, {"e": 0}, 1, [4.0, 3.0, 2.0, 1.0]),
        cell(tmp_path, {"e": 4}, 0, [2.0, 1.0], 100.0, flops_per_token=14),  # at 2.0: step 10, 1 s, 1,400 FLOPs
        cell(tmp_path, {"e": 4}, 1, [3.0, 1.5, 1.2, 1.1]),  # never at 1.0
    ]
    baseline, point = gather(cells).points
    assert savings(point, baseline) == [Saving(4.0, 2.0, 8.0), None]
    assert savings(baseline, baseline) == [Saving(1.0, 1.0, 1.0)] * 2


def test_without_the_seed_a_run_is_measured_against_the_mean(tmp_path):
    cells = [
        cell(tmp_path, {"e": 0}, 0, [4.0, 3.0, 2.5, 2.0]),  # step 40
        cell(tmp_path, {"e": 0}, 1, [4.0, 1.0]),  # step 20
        cell(tmp_path, {"e": 0}, 2, [4.0, None]),  # counts for nothing
        *(cell(tmp_path, {"e": 4}, seed, [2.0, 1.0]) for seed in (2, 3)),  # at the mean 1.5 in step 15
    ]
    baseline, point = gather(cells).points
    assert savings(point, baseline) == [Saving(2.0, 2.0, 2.0)] * 2


def test_a_baseline_reaches_its_own_loss_in_spite_of_rounding(tmp_path):
    assert 4.05 + (0.84 - 4.05) < 0.84
    (point,) = gather([cell(tmp_path, {"e": 0}, 0, [4.05, 0.84])]).points
    assert savings(point, point) == [pytest.approx(Saving(1.0, 1.0, 1.0))]


def test_a_baseline_that_diverged_saves_nothing(tmp_path):
    baseline, point = gather([cell(tmp_path, {"e": 0}, 0, [4.0, None]), cell(tmp_path, {"e": 4}, 0, [2.0])]).points
    assert math.isnan(baseline.losses[0])
    assert savings(point, baseline) == []
