import re

import pytest
from work_directories import cell, unfinished

from moe_jax.report.sweep import write_report

CAPACITY, EXPERTS = "moe.capacity_factor", "moe.num_experts"


def section(path, heading):
    return path.read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]


def table(path, heading):
    """The first table below a heading: its rows by their first cells."""
    lines = [line.strip("| ").split(" | ") for line in section(path, heading).splitlines() if line.startswith("| ")]
    header, *body = lines
    return [dict(zip(header, row, strict=True)) for row in body]


@pytest.fixture
def grid(tmp_path):
    """Two axes and two seeds; one cell failed, one is pending. The last losses are multiples of 1/100."""
    losses = {(1.0, 0): (2.00, 2.02), (1.0, 8): (1.50, 1.52), (2.0, 0): (2.02, 2.00), (2.0, 8): (1.40,)}
    cells = [
        cell(
            tmp_path,
            {CAPACITY: capacity, EXPERTS: experts},
            seed,
            [3.0, loss],
            speed=100.0 / capacity,
            flops_per_token=7 + experts,
            total_params=1000 * (1 + experts),
            dropped_fraction=0.1 * (seed + 1) if experts else 0.0,
            max_violation=1.0 + seed if experts else 0.0,
        )
        for (capacity, experts), of_seeds in losses.items()
        for seed, loss in enumerate(of_seeds)
    ]
    return [
        *cells,
        unfinished(tmp_path, {CAPACITY: 2.0, EXPERTS: 8}, 1, "failed", "out of memory | 3 GB"),
        unfinished(tmp_path, {CAPACITY: 2.0, EXPERTS: 8}, 2, "pending"),
    ]


def test_a_row_sums_up_the_seeds_of_a_point(grid, tmp_path):
    first, second, third, last = table(write_report(tmp_path, "Grid", grid, None), "Results")
    assert second == {
        CAPACITY: "1.0",
        EXPERTS: "8",
        "seeds": "2",
        "held-out loss": "1.5100",
        "95% interval": "1.5000 to 1.5200",
        "dropped": "15.00%",
        "MaxVio": "1.50",
        "parameters": "9,000",
        "FLOPs a token": "15",
        "seconds a step": "0.1",
    }
    assert (first["held-out loss"], first["dropped"], first["seconds a step"]) == ("2.0100", "0.00%", "0.1")
    assert third["seconds a step"] == "0.2"
    assert (last["seeds"], last["held-out loss"], last["95% interval"]) == ("1 of 3", "**1.4000** (best)", "-")


def test_the_summary_counts_cells_and_the_unfinished_are_listed(grid, tmp_path):
    path = write_report(tmp_path / "new" / "sweep", "Grid", grid, None)
    assert path == tmp_path / "new" / "sweep" / "report.md"
    text = path.read_text()
    assert text.startswith("# Grid\n")
    assert "9 cells of 4 points: 7 finished, 1 failed, 1 pending. Seeds finished: 0, 1. Steps: 20. Data: same" in text
    assert "**2 cells are missing from all figures below" in text
    name = f"{CAPACITY}=2.0,{EXPERTS}=8,seed="
    assert table(path, "Cells that are not finished") == [
        {"cell": f"{name}1", "status": "failed", "error": "out of memory \\| 3 GB"},
        {"cell": f"{name}2", "status": "pending", "error": "-"},
    ]


def test_differences_are_told_apart_from_what_seeds_do_alone(grid, tmp_path):
    path = write_report(tmp_path, "Grid", grid, None)
    # Three points have two seeds. Residuals: four of 1/150 and two of 1/75, 2 degrees of freedom; a standard error of
    # 0.01155; q(3 points, 2 degrees) = 8.331.
    by_pair = {(row["point"], row["against"]): row for row in table(path, "Which differences the seeds support")}
    dense, dense_2 = "capacity_factor=1.0, num_experts=0", "capacity_factor=2.0, num_experts=0"
    sparse = "capacity_factor=1.0, num_experts=8"
    assert set(by_pair) == {(dense, sparse), (dense_2, sparse), (dense, dense_2)}
    assert (by_pair[dense, sparse]["difference"], by_pair[dense, sparse]["supported"]) == ("+0.5000", "yes")
    assert by_pair[dense, sparse]["95% interval"] == "+0.4038 to +0.5962"
    assert (by_pair[dense, dense_2]["difference"], by_pair[dense, dense_2]["supported"]) == ("+0.0000", "**no**")
    text = section(path, "Which differences the seeds support")
    assert "for 2 of 3 pairs of points, and for no other. Points are compared seed by seed (blocked by seed" in text
    assert "Left out because one seed says nothing about chance: capacity_factor=2.0, num_experts=8." in text


def test_points_are_compared_seed_by_seed_until_one_of_them_lacks_a_seed(tmp_path):
    losses = {0: (2.00, 2.10, 2.20), 4: (1.97, 2.08, 2.18)}
    cells = [cell(tmp_path, {EXPERTS: e}, s, [3.0, v]) for e, vs in losses.items() for s, v in enumerate(vs)]
    heading = "Which differences the seeds support"
    path = write_report(tmp_path, "Same seeds", cells, None)
    assert [row["supported"] for row in table(path, heading)] == ["yes"]
    assert "compared seed by seed (blocked by seed, Tukey, 95%" in section(path, heading)
    path = write_report(tmp_path, "One failed", [*cells[:-1], cells[-1]._replace(status="failed")], None)
    assert [row["supported"] for row in table(path, heading)] == ["**no**"]
    assert "compared by their means alone, as not all have the same seeds (Tukey's HSD, 95%" in section(path, heading)


@pytest.mark.parametrize(("wild", "said"), [(0.3, True), (0.003, False)])
def test_points_that_scatter_unequally_are_pointed_out(tmp_path, wild, said):
    """Two points of almost one difference, and one that varies against them a hundred times as much, or alike."""
    losses = {0: (2.0, 2.1, 2.2, 2.15), 4: (1.9, 2.002, 2.099, 2.051), 8: (1.8 + wild, 1.9, 2.0 - wild, 1.95)}
    cells = [cell(tmp_path, {EXPERTS: e}, s, [3.0, v]) for e, vs in losses.items() for s, v in enumerate(vs)]
    text = section(write_report(tmp_path, "Scatter", cells, None), "Which differences the seeds support")
    assert ("scatter unequally over the seeds: standard deviations of 0.0013 to 0.2449" in text) == said


def test_as_many_seeds_are_not_the_same_seeds(tmp_path):
    cells = [cell(tmp_path, {EXPERTS: e}, s, [2.0 + s / 10 + e * s / 99]) for e, s in ((0, 0), (0, 1), (4, 1), (4, 2))]
    path = write_report(tmp_path, "Shifted", cells, None)
    assert "by their means alone" in section(path, "Which differences the seeds support")


def test_many_pairs_are_cut_to_those_with_the_best_and_the_baseline(tmp_path):
    losses = [2.0, 1.9, 1.8, 1.7, 1.6, 1.5, 1.4]
    cells = [
        cell(tmp_path, {"x.y": i}, s, [loss + (-1) ** (i + s) / 200]) for i, loss in enumerate(losses) for s in (0, 1)
    ]
    heading = "Which differences the seeds support"
    rows = table(write_report(tmp_path / "a", "Many", cells, None), heading)
    assert {(row["point"], row["against"]) for row in rows} == {(f"y={i}", "y=6") for i in range(6)}
    assert rows[0]["difference"] == "+0.6000"
    path = write_report(tmp_path / "b", "Many", cells, {"x.y": 0})
    assert {(row["point"], row["against"]) for row in table(path, heading)} == {
        *((f"y={i}", "y=6") for i in range(6)),
        *((f"y={i}", "y=0") for i in range(1, 6)),
    }
    difference = next(row for row in table(path, heading) if (row["point"], row["against"]) == ("y=1", "y=0"))
    low, high = map(float, difference["95% interval"].split(" to "))
    assert difference["difference"] == "-0.1000"
    assert low < high and (low + high) / 2 == pytest.approx(-0.1)
    assert re.search(r"for 21 of 21 pairs", section(path, heading))


def test_from_one_seed_nothing_is_concluded(tmp_path):
    cells = [cell(tmp_path, {EXPERTS: e}, 0, [3.0, 2.0 - e / 10]) for e in (0, 4)]
    path = write_report(tmp_path, "One seed", cells, None)
    assert "Nothing can be said" in section(path, "Which differences the seeds support")
    assert "One seed a point: no interval can be given." in section(path, "Results")
    assert [row["95% interval"] for row in table(path, "Results")] == ["-", "-"]


def test_seeds_that_change_nothing_are_not_tested(tmp_path):
    cells = [cell(tmp_path, {EXPERTS: e}, s, [3.0, 2.0 - e / 10]) for e in (0, 4) for s in (0, 1)]
    text = section(write_report(tmp_path, "Same", cells, None), "Which differences the seeds support")
    assert "differences between points do not scatter over seeds" in text
    assert "| point |" not in text


def test_a_diverged_point_is_named_and_never_best(tmp_path):
    losses = {0: (2.0, 2.1), 4: (1.81, 1.89), 8: (1.0, None)}
    cells = [cell(tmp_path, {EXPERTS: e}, s, [3.0, v]) for e, vs in losses.items() for s, v in enumerate(vs)]
    path = write_report(tmp_path, "Diverged", cells, {EXPERTS: 0})
    rows = table(path, "Results")
    assert [row["held-out loss"] for row in rows] == ["2.0500", "**1.8500** (best)", "diverged (1 of 2)"]
    text = section(path, "Which differences the seeds support")
    assert "Left out because a run of theirs diverged: num_experts=8." in text
    assert "1 pairs" in text
    assert [row["reached by"] for row in table(path, "To the baseline's held-out loss")] == ["2 of 2", "1 of 2"]
    assert "num_experts=8" not in section(path, "Loss against step time")


def test_all_diverged_is_still_a_report(tmp_path):
    cells = [cell(tmp_path, {EXPERTS: e}, s, [3.0, None]) for e in (0, 4) for s in (0, 1)]
    path = write_report(tmp_path, "Diverged", cells, {EXPERTS: 0})
    assert [row["held-out loss"] for row in table(path, "Results")] == ["diverged (2 of 2)"] * 2
    assert table(path, "To the baseline's held-out loss")[0]["reached by"] == "the baseline has no final loss"


def test_the_need_for_the_baselines_loss_is_a_mean_with_its_range(tmp_path):
    cells = [
        *(cell(tmp_path, {EXPERTS: 0}, seed, [4.0, 3.0, 2.5, 2.0]) for seed in (0, 1)),  # step 40, 8 s
        cell(tmp_path, {EXPERTS: 4}, 0, [2.0, 1.0], 100.0, flops_per_token=14),  # step 10, 1 s
        cell(tmp_path, {EXPERTS: 4}, 1, [3.0, 2.0], 100.0, flops_per_token=14),  # step 20, 2 s
        cell(tmp_path, {EXPERTS: 8}, 0, [3.0, 2.1]),
    ]
    path = write_report(tmp_path, "Needs", cells, {EXPERTS: 0})
    reached, missed = table(path, "To the baseline's held-out loss")
    assert reached == {
        "point": "num_experts=4",
        "baseline": "num_experts=0",
        "reached by": "2 of 2",
        "fewer steps": "3.00x (2.00 to 4.00)",
        "fewer FLOPs": "1.50x (1.00 to 2.00)",
        "less time": "6.00x (4.00 to 8.00)",
    }
    assert list(missed.values()) == ["num_experts=8", "num_experts=0", "not reached", "-", "-", "-"]


def test_every_picture_that_the_report_shows_is_there(grid, tmp_path):
    path = write_report(tmp_path / "report", "Grid", grid, {EXPERTS: 0})
    shown = re.findall(r"!\[.*\]\((.*)\)", path.read_text())
    assert sorted(shown) == [
        "dropped_and_max_violation.png",
        "loss_against_capacity_factor.png",
        "loss_against_num_experts.png",
        "loss_against_step_time.png",
        "loss_against_training_flops.png",
        "loss_against_training_time.png",
    ]
    assert sorted(file.name for file in path.parent.iterdir()) == sorted([*shown, "report.md"])  # and no drafts
    assert all((path.parent / name).read_bytes().startswith(b"\x89PNG") for name in shown)


def test_a_sweep_of_seeds_alone_is_a_report_of_one_point(tmp_path):
    path = write_report(tmp_path, "Seeds", [cell(tmp_path, {}, seed, [3.0, 2.0 + seed]) for seed in range(3)], None)
    (row,) = table(path, "Results")
    assert (row["seeds"], row["held-out loss"], row["95% interval"]) == ("3", "**3.0000** (best)", "2.0000 to 4.0000")
    assert "loss_against_step_time.png" not in path.read_text()


def test_different_data_and_unknown_baselines_are_refused(grid, tmp_path):
    with pytest.raises(ValueError, match=r"no point of the sweep has moe.num_experts=5"):
        write_report(tmp_path, "Grid", grid, {EXPERTS: 5})
    other = cell(tmp_path, {CAPACITY: 3.0, EXPERTS: 8}, 0, [1.0], data_sha256="other")
    with pytest.raises(ValueError, match="have different data"):
        write_report(tmp_path, "Grid", [*grid, other], None)
    assert not (tmp_path / "report.md").exists()


def test_held_out_samples_of_different_size_are_pointed_out(tmp_path):
    same = [cell(tmp_path / "a", {"eval.batches": 0, EXPERTS: e}, 0, [2.0]) for e in (0, 4)]
    assert "different size" not in write_report(tmp_path / "a", "Same", same, None).read_text()
    cells = [cell(tmp_path / "b", {"eval.batches": n}, 0, [2.0]) for n in (4, 8)]
    assert "held-out samples of different size" in write_report(tmp_path / "b", "Other", cells, None).read_text()
