import collections
import re

import pytest
from tiny_sweep import base, cells_of

from moe_jax.config.rules import ConfigError
from moe_jax.sweep import cells as cells_room
from moe_jax.sweep import derive as derive_room
from moe_jax.sweep.cells import make_cells, name_of
from moe_jax.sweep.derive import equal_flops, fixed_group
from moe_jax.sweep.design import Sweep, grid
from moe_jax.tasks import registry, results
from moe_jax.tasks.results import Terms
from moe_jax.tasks.text import Text

SAFE = re.compile(r"[A-Za-z0-9_.,=+-]+")


def test_a_name_says_what_distinguishes_the_cell():
    """It is the directory of the cell: another release that gives it another name loses the runs."""
    name = name_of({"moe.capacity_factor": 1.25, "moe.d_ff": 32, "train.learning_rate": 1e-05, "seed": 0})
    assert name == "capacity_factor=1.25,moe.d_ff=32,learning_rate=1e-05,seed=0"


@pytest.mark.parametrize(
    "value", ["text:/data/*.txt", "a b", "größe", "文" * 200, "x" * 500, "../..", (0.25, 0.75), "", "a\nb", "[b]", "/"]
)
def test_any_value_makes_a_name_that_is_safe(value):
    name = name_of({"data.source": value, "seed": 0})
    assert SAFE.fullmatch(name)
    assert len(name.encode()) < 200
    assert name == name_of({"data.source": value, "seed": 0})


def test_names_that_would_be_equal_are_told_apart():
    values = ["a/b", "a_b", "a b", "a:b", "x" * 200, "x" * 201, "1", "1.0"]
    assert len({name_of({"data.source": value, "seed": seed}) for value in values for seed in (0, 1)}) == 16


def test_cells_are_points_by_seeds_the_whole_grid_first():
    points = grid({"moe.capacity_factor": (1.0, 2.0)})
    cells = cells_of(points, seeds=(3, 5))
    assert [(cell.point, cell.run.seed) for cell in cells] == [
        (points[0], 3),
        (points[1], 3),
        (points[0], 5),
        (points[1], 5),
    ]
    assert [cell.run.moe.capacity_factor for cell in cells] == [1.0, 2.0, 1.0, 2.0]
    assert len({cell.name for cell in cells}) == 4


def test_every_cell_that_cannot_run_is_found():
    points = [{"moe.num_experts": 4}, {"moe.num_experts": -1}, {"moe.num_experts": "many"}, {"moe.top_k": 8}]
    cells, invalid = make_cells(Sweep(points), base(), 1)
    assert [cell.point for cell in cells] == points[:1]
    assert list(invalid) == ["num_experts=-1,seed=0", "num_experts=many,seed=0", "top_k=8,seed=0"]
    assert "moe.num_experts=-1 is negative" in invalid["num_experts=-1,seed=0"]
    assert "is of type str" in invalid["num_experts=many,seed=0"]


@pytest.mark.parametrize(
    "sweep, reason",
    [
        (Sweep([{"moe.experts": 4}]), "moe.experts is not a field of a run: did you mean moe.num_experts"),
        (Sweep([{"moe": 4}]), "moe is a section, not a field"),
        (Sweep([]), "no points or no seeds"),
        (Sweep([{}], seeds=()), "no points or no seeds"),
        (Sweep([{"seed": 1}]), "seed is swept as a field: give the seeds to Sweep"),
        (Sweep([{"moe.top_k": 1}] * 2), "has the cell top_k=1,seed=0 2 times"),
        (Sweep([{}], seeds=(0, 0)), "has the cell seed=0 2 times"),
        (Sweep([{"moe.top_k": 1}], baseline={"moe.top_k": 2}), "no point of the sweep has baseline={'moe.top_k': 2}"),
        (
            Sweep([{"moe.d_ff": 8}], derive=[lambda base, points: [{**p, "moe.d_ff": 9} for p in points]]),
            "moe.d_ff is swept or derived, and derived again .8 becomes 9.",
        ),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(sweep, reason):
    with pytest.raises(ValueError, match=reason):
        make_cells(sweep, base(), 1)


def test_cells_are_checked_for_the_devices_they_will_have():
    assert not make_cells(Sweep([{}]), base({"mesh.data": 2}), 2)[1]
    assert "2 devices and 1 are present" in make_cells(Sweep([{}]), base({"mesh.data": 2}), 1)[1]["seed=0"]


def test_cells_that_differ_in_evaluation_only_are_trained_once():
    points = grid({"moe.capacity_factor": (1.0, 2.0), "moe.eval_capacity_factor": (1.0, 2.0)})
    cells = cells_of(points, seeds=(0, 1))
    names = [cell.name for cell in cells]
    assert [cell.twin for cell in cells] == [None, names[0], None, names[2], None, names[4], None, names[6]]


@pytest.mark.parametrize(
    "field, values",
    [
        ("model.loss_chunk", (8, 16)),
        ("model.remat", ("none", "full")),
        ("train.steps", (8, 9)),
        ("data.batch_size", (8, 16)),
    ],
)
def test_cells_that_run_at_another_speed_are_no_twins(field, values):
    assert [cell.twin for cell in cells_of(grid({field: values}))] == [None, None]


def test_a_cells_fields_are_as_json_gives_them_back():
    [cell] = cells_of([{"data.weights": (0.5, 0.5), "data.source": "text:a,text:b"}])
    assert cell.fields()["data.weights"] == [0.5, 0.5]
    assert cell.fields()["moe.num_experts"] == 4


def test_the_same_run_by_two_names_is_refused():
    with pytest.raises(ValueError, match=r"capacity_factor=1.0,seed=0 and capacity_factor=1,seed=0 are the same run"):
        make_cells(Sweep(grid({"moe.capacity_factor": (1, 1.0)})), base(), 1)


def test_runs_on_different_text_are_no_sweep():
    with pytest.raises(ValueError, match=r"data.sequence_length varies \(16, 32\), and held-out losses on different"):
        make_cells(Sweep(grid({"data.sequence_length": (16, 32)})), base(), 1)


def test_runs_of_different_tasks_are_no_sweep(monkeypatch):
    monkeypatch.setitem(registry.TASKS, "chess", Text)
    monkeypatch.setitem(results.TERMS, "chess", Terms("", (), ("data.games",)))
    with pytest.raises(ValueError, match=r"^task varies \(chess, text\), and held-out losses"):
        make_cells(Sweep(grid({"task": ("text", "chess")})), base(), 1)


def test_as_many_devices_as_the_mesh_of_each_cell_asks_for():
    cells, invalid = make_cells(Sweep(grid({"mesh.data": (1, 2)})), base(), None)
    assert [cell.run.mesh.data for cell in cells] == [1, 2] and not invalid
    _, invalid = make_cells(Sweep([{"mesh.data": -1}]), base(), None)
    assert list(invalid.values()) == ["mesh.data=-1 leaves open how many devices a cell needs: give a number"]


@pytest.mark.parametrize(
    "derive, reason",
    [
        (lambda base, points: points[1:], r"Sweep\(derive=...\)\[1\] is to return a list with each of the 2 points"),
        (lambda base, points: None, r"Sweep\(derive=...\)\[1\] is to return a list"),
        (lambda base, points: 1 / 0, r"Sweep\(derive=...\)\[1\] fails \(ZeroDivisionError: division by zero\)"),
        (lambda base, points: [{}, {}], r"moe.top_k is swept or derived, and derived again \(it is gone\) by Sweep"),
    ],
)
def test_a_derivation_that_fails_is_named(derive, reason):
    sweep = Sweep([{"moe.top_k": 1}, {"moe.top_k": 2}], derive=[lambda base, points: points, derive])
    with pytest.raises(ConfigError, match=reason):
        make_cells(sweep, base(), 1)


def test_the_work_of_checking_grows_with_the_points_and_no_faster(monkeypatch):
    """10,000 points took three minutes. With three resolutions of each point, at 0.3 ms, they take seconds."""
    calls = collections.Counter()

    def counted(module, name):
        function = getattr(module, name)

        def count(*arguments, **named):
            calls[name] += 1
            return function(*arguments, **named)

        monkeypatch.setattr(module, name, count)

    for module in (cells_room, derive_room):
        counted(module, "resolve")
    counted(cells_room, "flatten")
    counted(cells_room, "check_field")
    sweep = Sweep(
        [{"train.learning_rate": 0.1 + i / 1e5, "moe.num_experts": 4 + i % 3} for i in range(100)],
        derive=[equal_flops({"moe.num_experts": 4}), fixed_group(min_slots=1)],
    )
    made, _ = make_cells(sweep, base(), 1)
    assert len(made) == 100
    assert calls["resolve"] <= 300 + 1 + 2 * 3, "one to measure against, two for each number of experts"
    assert calls["flatten"] <= 100
    assert calls["check_field"] <= 2
