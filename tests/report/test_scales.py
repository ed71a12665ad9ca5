import pytest

from moe_jax.report.scales import scale


def test_close_numbers_lie_by_their_size():
    axis = scale("moe.capacity_factor", [2.0, 1.0, 1.25, 1.0])
    assert axis.ticks == {1.0: "1", 1.25: "1.25", 2.0: "2"}
    assert axis.joined == {1.0, 1.25, 2.0}
    assert axis.label == "moe.capacity_factor"


def test_far_numbers_lie_by_their_logarithm():
    axis = scale("train.learning_rate", [0.25, 1.0, 8.0])
    assert axis.ticks == {-2.0: "0.25", 0.0: "1", 3.0: "8"}
    assert "logarithmic" in axis.label


def test_a_dense_model_lies_apart_and_no_line_runs_to_it():
    axis = scale("moe.num_experts", [0, 1, 4, 16])
    assert axis.ticks == {-1.0: "0 (dense)", 0.0: "1", 2.0: "4", 4.0: "16"}
    assert axis.joined == {0.0, 2.0, 4.0}
    assert axis.place(0) == -1.0


def test_experts_are_logarithmic_however_close():
    assert scale("moe.num_experts", [4, 8]).ticks == {2.0: "4", 3.0: "8"}


@pytest.mark.parametrize("values", [["switch", "top_k"], [True, False], [[1.0], [2.0, 3.0]]])
def test_all_else_lies_side_by_side(values):
    axis = scale("a.b", values)
    assert [axis.place(value) for value in values] == [0.0, 1.0]
    assert list(axis.ticks.values()) == [str(tuple(v) if isinstance(v, list) else v) for v in values]


def test_negative_numbers_are_not_put_on_a_logarithmic_axis():
    assert list(scale("a.b", [-1, 1, 100]).ticks) == [-1.0, 1.0, 100.0]


def test_a_field_of_zeros_alone_has_a_place():
    assert scale("moe.num_experts", [0]).ticks == {0.0: "0 (dense)"}
