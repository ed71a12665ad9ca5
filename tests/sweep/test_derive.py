import runpy

import pytest
from tiny_sweep import ROOT, base

from moe_jax.config.capacity import capacity
from moe_jax.resolve import ConfigError, resolve
from moe_jax.resolve.counting import count
from moe_jax.sweep.cells import make_cells
from moe_jax.sweep.derive import equal_flops, equal_total_params, fixed_group, with_fields
from moe_jax.sweep.design import Sweep, grid, load_sweep, narrowed

EXPERTS = grid({"moe.num_experts": (0, 1, 4, 16)})
WIDE = {"moe.d_ff": 64, "model.d_ff": 64}


def width_field(point):
    return "moe.d_ff" if point["moe.num_experts"] else "model.d_ff"


def at(config, point):
    return count(resolve(with_fields(config, {**point, "moe.group_size": 1})))


def test_with_fields_leaves_the_base_as_it_was():
    config = base()
    changed = with_fields(config, {"moe.num_experts": 16, "seed": 7})
    assert (changed.moe.num_experts, changed.seed) == (16, 7)
    assert config == base()


def test_with_fields_takes_values_of_any_type_for_resolve_to_name():
    with pytest.raises(ConfigError, match=r"moe.num_experts='many' is of type str"):
        resolve(with_fields(base(), {"moe.num_experts": "many"}))


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("multiple_of", [1, 8])
def test_equal_flops_is_the_nearest_width(multiple_of, every):
    config = base(WIDE | {"model.num_layers": 2, "moe.every": every})
    to = {"moe.num_experts": 16}
    goal = at(config, to).flops_per_token
    derived = equal_flops(to, multiple_of)(config, EXPERTS)
    for point in derived:
        field = width_field(point)
        assert point[field] % multiple_of == 0
        step = at(config, {**point, field: 2 * multiple_of}).flops_per_token
        step -= at(config, {**point, field: multiple_of}).flops_per_token
        assert abs(at(config, point).flops_per_token - goal) <= step / 2
    if multiple_of == 1:
        assert derived[-1]["moe.d_ff"] == 64
        assert derived[0]["model.d_ff"] > 64, "what the router costs goes to the dense model's feed-forward"


def test_equal_total_params_makes_experts_smaller():
    config = base({"moe.d_ff": 256, "model.d_ff": 256})
    derived = equal_total_params({"moe.num_experts": 1})(config, EXPERTS)
    assert [point[width_field(point)] for point in derived[1:]] == [256, 64, 16]
    for point in derived:
        one_width = max(point["moe.num_experts"], 1) * 2 * 16
        assert abs(at(config, point).total_params - at(config, {"moe.num_experts": 1}).total_params) <= one_width / 2


def test_goals_out_of_reach_are_named_all_of_them():
    """16 or 32 narrow experts cannot have fewer parameters than one narrow expert."""
    named = r"'moe.num_experts': %d\} has total_params=\d+ at moe.d_ff=1, more than the \d+ .*"
    with pytest.raises(ConfigError, match=named % 16 + named % 32):
        equal_total_params({"moe.num_experts": 1})(base({"moe.d_ff": 4}), [*EXPERTS, {"moe.num_experts": 32}])


def test_a_point_that_cannot_run_is_left_to_the_check_of_cells():
    points = [{"moe.num_experts": 4}, {"moe.num_experts": 2, "moe.top_k": 3}]
    assert equal_flops({"moe.num_experts": 4})(base(), points)[1] == points[1]
    assert fixed_group(2)(base(), points)[0]["moe.group_size"] == 4


def test_equal_flops_does_not_ask_for_the_base_configs_groups_and_mesh():
    config = base({"moe.group_size": 3, "mesh.data": 8, "moe.exchange_chunks": 5})
    plain = equal_flops({"moe.num_experts": 4})(base(), EXPERTS)
    assert equal_flops({"moe.num_experts": 4})(config, EXPERTS) == plain


TIGHT = grid({"moe.capacity_factor": (0.5, 1.0), "moe.num_experts": (0, 4, 16)})


def slots(run):
    return capacity(run.moe.capacity_factor, run.moe.top_k, run.moe.group_size, run.moe.num_experts)


def test_a_fixed_group_has_enough_slots_in_every_cell():
    """C = 0.5 * 1024 / 16 = 32 in the tightest cell: with half the group it would be 16."""
    config = base({"data.batch_size": 64})  # 64 sequences of 16 tokens
    cells, invalid = make_cells(Sweep(TIGHT, derive=[fixed_group(min_slots=32)]), config, 1)
    assert not invalid
    assert {cell.run.moe.group_size for cell in cells} == {1024}
    assert all(cell.derived == {"moe.group_size": 1024} for cell in cells)
    assert min(slots(cell.run) for cell in cells if cell.run.moe.num_experts) == 32


def test_a_group_that_does_not_fit_is_refused():
    with pytest.raises(
        ConfigError, match=r"up to the 512 tokens .* 32 slots at moe.num_experts=16, moe.capacity_factor=0.5: raise"
    ):
        make_cells(Sweep(TIGHT, derive=[fixed_group(min_slots=32)]), base({"data.batch_size": 32}), 1)


def test_cells_of_a_part_of_the_sweep_are_those_of_the_whole():
    """The group of the loosest cells alone would be smaller."""
    sweep = Sweep(TIGHT, derive=[fixed_group(min_slots=32), equal_flops(to={"moe.num_experts": 16})])
    config = base(WIDE | {"data.batch_size": 64})
    whole, _ = make_cells(sweep, config, 1)
    part, _ = make_cells(narrowed(sweep, TIGHT[4:5]), config, 1)
    assert [cell.run for cell in part] == [whole[4].run]
    assert {cell.run.moe.group_size for cell in part} == {1024}


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "sweeps").glob("*.py")), ids=lambda path: path.stem)
def test_the_sweeps_that_come_along_are_valid_and_hold_what_they_promise(path):
    config, sweep = runpy.run_path(str(path))["get_config"](), load_sweep(path)
    cells, invalid = make_cells(sweep, config, 1)
    assert not invalid
    assert len(cells) == len(sweep.points) * len(sweep.seeds)
    moe = [cell.run for cell in cells if cell.run.moe.num_experts]
    assert min(map(slots, moe)) >= 32
    assert len({run.moe.group_size for run in moe}) == 1
