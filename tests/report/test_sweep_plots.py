import math

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from work_directories import cell

from moe_jax.report.points import gather
from moe_jax.report.sweep_plots import figures, front


def lines(axis):
    """The labelled lines of an axis: {label: [(x, y), ...]}."""
    labelled = [line for line in axis.lines if not line.get_label().startswith("_")]
    return {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in labelled}


@pytest.fixture
def sweep(tmp_path):
    """Experts 0, 4 and 16 at two capacities, each with two seeds 0.2 apart; more capacity is slower."""
    points = [{"moe.capacity_factor": c, "moe.num_experts": e} for c in (1.0, 2.0) for e in (0, 4, 16)]
    cells = [
        cell(
            tmp_path,
            point,
            seed,
            [4.0, 3.0 - 0.05 * point["moe.num_experts"] - 0.1 * point["moe.capacity_factor"] + 0.2 * seed],
            speed=100.0 / point["moe.capacity_factor"],
            dropped_fraction=0.125 * (1 + seed) if point["moe.num_experts"] else 0.0,
        )
        for point in points
        for seed in (0, 1)
    ]
    return gather(cells)


def test_a_line_for_each_value_of_the_other_field_through_the_means(sweep):
    made = figures(sweep)
    by_capacity = lines(made["loss_against_capacity_factor"].axes[0])
    assert list(by_capacity) == ["num_experts=0", "num_experts=4", "num_experts=16"]
    assert by_capacity["num_experts=4"] == [pytest.approx((1.0, 2.8)), pytest.approx((2.0, 2.7))]
    by_experts = lines(made["loss_against_num_experts"].axes[0])
    assert by_experts["capacity_factor=1.0"] == [pytest.approx((2.0, 2.8)), pytest.approx((4.0, 2.2))]  # not 0 experts


def test_every_seed_is_a_dot_and_the_bars_are_the_intervals(sweep):
    axis = figures(sweep)["loss_against_num_experts"].axes[0]
    dots = [y for line in axis.lines if line.get_marker() == "." for y in line.get_ydata()]
    assert sorted(dots) == pytest.approx(sorted(loss for point in sweep.points for loss in point.losses))
    bars = [segment[:, 1] for collection in axis.collections for segment in collection.get_segments()]
    assert len(bars) == 6
    assert all(high - low == pytest.approx(0.2) for low, high in bars)
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0 (dense)", "4", "16"]


def test_routing_is_shown_against_the_first_numeric_field(sweep):
    dropped, violation = figures(sweep)["dropped_and_max_violation"].axes
    assert lines(dropped)["num_experts=4"] == [pytest.approx((1.0, 0.1875)), pytest.approx((2.0, 0.1875))]
    assert lines(violation)["num_experts=0"] == [(1.0, 0.0), (2.0, 0.0)]
    low, high = dropped.get_ylim()
    assert low < 0 and high > 0.25


def test_curves_are_means_over_seeds_against_flops_and_time(sweep):
    made = figures(sweep)
    label = "capacity_factor=2.0, num_experts=4"
    assert lines(made["loss_against_training_flops"].axes[0])[label] == [
        pytest.approx((700, 4.0)),
        pytest.approx((1400, 2.7)),
    ]
    assert lines(made["loss_against_training_time"].axes[0])[label] == [
        pytest.approx((2.0, 4.0)),
        pytest.approx((4.0, 2.7)),
    ]


def test_the_front_is_marked_and_named(sweep):
    assert [point.label for point in front(sweep)] == [
        "capacity_factor=1.0, num_experts=16",
        "capacity_factor=2.0, num_experts=16",
    ]
    shown = lines(figures(sweep)["loss_against_step_time"].axes[0])
    assert shown["Pareto front"] == [pytest.approx((0.1, 2.2)), pytest.approx((0.2, 2.1))]
    assert set(shown) == {"Pareto front", *(point.label for point in front(sweep))}


def test_a_diverged_point_has_dots_but_no_mean_and_is_not_on_the_front(tmp_path):
    losses = {1: (2.0, 2.1), 2: (1.0, None), 4: (1.5, 1.6)}
    sweep = gather(
        [cell(tmp_path, {"moe.top_k": k}, s, [3.0, v]) for k, vs in losses.items() for s, v in enumerate(vs)]
    )
    made = figures(sweep)
    (line,) = [line for line in made["loss_against_top_k"].axes[0].lines if line.get_linestyle() == "-"]
    assert [math.isnan(y) for y in line.get_ydata()] == [False, True, False]
    assert [point.point["moe.top_k"] for point in front(sweep)] == [4]


def test_a_curve_off_the_scale_does_not_squeeze_the_others(tmp_path):
    cells = [cell(tmp_path, {"a.b": 1}, 0, [3.0, 2.0]), cell(tmp_path, {"a.b": 2}, 0, [1e6, None])]
    axis = figures(gather(cells))["loss_against_training_flops"].axes[0]
    assert axis.get_ylim() == pytest.approx((1.95, 3.05))


def test_dense_models_alone_have_no_picture_of_routing(tmp_path):
    cells = [cell(tmp_path, {"model.d_ff": d, "moe.num_experts": 0}, 0, [2.0]) for d in (16, 32)]
    assert sorted(figures(gather(cells))) == [
        "loss_against_d_ff",
        "loss_against_step_time",
        "loss_against_training_flops",
        "loss_against_training_time",
    ]


def test_many_points_are_told_apart_and_the_legend_fits(tmp_path):
    points = [{"moe.capacity_factor": c / 4, "moe.router": r} for c in range(1, 16) for r in ("switch", "top_k")]
    cells = [cell(tmp_path, point, 0, [3.0, 2.0]) for point in points]
    figure = figures(gather(cells))["loss_against_training_time"]
    drawn = [line for line in figure.axes[0].lines if not line.get_label().startswith("_")]
    assert len({(line.get_color(), line.get_linestyle()) for line in drawn}) == 30
    FigureCanvasAgg(figure).draw()
    axis, box, frame = (part.get_window_extent() for part in (figure.axes[0], figure.legends[0], figure))
    assert axis.width > 4 * figure.dpi
    assert box.x0 > axis.x1
    assert box.x1 <= frame.x1 and box.y0 >= frame.y0 and box.y1 <= frame.y1
