import math

import pytest

from moe_jax.config.rules import ConfigError
from moe_jax.sweep.design import Choice, LogUniform, Sweep, Uniform, grid, load_sweep, narrowed, only, quasi_random

POINTS = grid({"moe.num_experts": (1, 4, 16), "moe.top_k": (1, 2)})


def test_a_grid_is_every_combination_the_last_field_fastest():
    assert grid({"a.x": (1, 2), "a.y": ("p", "q")}) == [
        {"a.x": 1, "a.y": "p"},
        {"a.x": 1, "a.y": "q"},
        {"a.x": 2, "a.y": "p"},
        {"a.x": 2, "a.y": "q"},
    ]


def test_only_keeps_the_points_that_meet_the_condition():
    kept = only(only(Sweep(POINTS), "moe.num_experts=1|16"), "moe.top_k=2")
    assert kept.points == [{"moe.num_experts": 1, "moe.top_k": 2}, {"moe.num_experts": 16, "moe.top_k": 2}]


@pytest.mark.parametrize(
    "condition, reason",
    [("moe.num_experts=2", "its values are 1, 16, 4"), ("moe.router=switch", "that field is not swept")],
)
def test_only_says_why_nothing_is_left(condition, reason):
    with pytest.raises(ValueError, match=rf"--only={condition} names what the sweep does not have: {reason}"):
        only(Sweep(POINTS), condition)


def test_points_left_out_and_the_baseline_are_kept_in_mind():
    sweep = Sweep(POINTS, baseline={"moe.num_experts": 4})
    with_it, without = narrowed(sweep, POINTS[2:]), narrowed(sweep, POINTS[:2])
    assert with_it.baseline == {"moe.num_experts": 4}
    assert without.baseline is None
    assert [*with_it.left_out, *with_it.points] == POINTS
    assert without.left_out == POINTS[2:]
    assert narrowed(with_it, POINTS[5:]).left_out == [*POINTS[:2], *POINTS[2:5]]


RANGES = {
    "train.learning_rate": LogUniform(1e-4, 1e-2),
    "moe.num_experts": Choice((2, 4, 8)),
    "moe.jitter": Uniform(0.0, 0.1),
}


def test_a_draw_is_stable_and_the_start_of_a_longer_one():
    draw = quasi_random(RANGES, 24)
    assert quasi_random(RANGES, 24) == draw
    assert quasi_random(RANGES, 7) == draw[:7]
    assert quasi_random(RANGES, 24, seed=1) != draw


def test_a_draw_covers_its_ranges_evenly():
    """Of 24 points each third of a range gets 8, give or take one; independent draws would miss that."""
    draw = quasi_random(RANGES, 24)
    for where in (
        lambda point: math.log10(point["train.learning_rate"] / 1e-4) / 2,
        lambda point: point["moe.jitter"] / 0.1,
        lambda point: (2, 4, 8).index(point["moe.num_experts"]) / 3,
    ):
        thirds = [min(int(3 * where(point) + 1e-9), 2) for point in draw]
        assert all(abs(thirds.count(third) - 8) <= 1 for third in range(3)), thirds
        assert 0 <= min(map(where, draw)) <= max(map(where, draw)) <= 1


def test_real_numbers_of_a_draw_are_readable():
    for point in quasi_random(RANGES, 5):
        assert point["train.learning_rate"] == float(f"{point['train.learning_rate']:.4g}")
        assert type(point["moe.num_experts"]) is int


def test_the_ends_of_a_range():
    assert (Uniform(2.0, 4.0).at(0.0), Uniform(2.0, 4.0).at(0.5)) == (2.0, 3.0)
    assert LogUniform(1.0, 100.0).at(0.5) == pytest.approx(10.0)
    assert [Choice("abc").at(u) for u in (0.0, 0.34, 0.99, 1.0)] == ["a", "b", "c", "c"]


@pytest.mark.parametrize(
    "text, reason",
    [("x = 1\n", "declares no sweep: add get_sweep"), ("def get_sweep():\n    return [1]\n", "returns a list")],
)
def test_a_file_without_a_sweep_is_refused(tmp_path, text, reason):
    path = tmp_path / "config.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=reason):
        load_sweep(path)


@pytest.mark.parametrize(
    "condition, kept",
    [
        ("train.learning_rate=1e-3", [0.001]),
        ("train.learning_rate=1E-03|2", [0.001, 2.0]),
        ("train.learning_rate=.0010|2.0", [0.001, 2.0]),
        ("moe.normalize_gates=True", [True]),
        ("moe.num_experts_by_layer=[1,2]", [(1, 2)]),
        ("moe.num_experts_by_layer=(1, 2)", [(1, 2)]),
        ("moe.router='soft'", ["soft"]),
        ("moe.router=soft", ["soft"]),
    ],
)
def test_a_value_may_be_written_in_any_way(condition, kept):
    points = grid({"train.learning_rate": (0.001, 0.01, 2.0)}) + grid({"moe.normalize_gates": (True, False)})
    points += grid({"moe.num_experts_by_layer": ((1, 2), (1,))}) + grid({"moe.router": ("soft", "switch")})
    assert [value for point in only(Sweep(points), condition).points for value in point.values()] == kept


@pytest.mark.parametrize("condition", ["moe.normalize_gates=1", "train.learning_rate=1e-4", "train.learning_rate=("])
def test_what_only_looks_alike_is_another_value(condition):
    with pytest.raises(ConfigError, match="names what the sweep does not have"):
        only(Sweep([{"moe.normalize_gates": True}, {"train.learning_rate": 0.001}]), condition)
