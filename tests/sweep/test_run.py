import re

import pytest
from tiny_sweep import base, cells_of, finish

from moe_jax.files.lock import locked
from moe_jax.sweep.cells import make_cells
from moe_jax.sweep.derive import fixed_group
from moe_jax.sweep.design import Sweep, grid
from moe_jax.sweep.ledger import Ledger
from moe_jax.sweep.run import Shard, checked_cells, run_sweep, smoke

FACTORS = {"moe.capacity_factor": (1.0, 2.0, 4.0)}
TWINS = grid(FACTORS | {"moe.eval_capacity_factor": (1.0, 2.0)})


@pytest.mark.parametrize("count", range(1, 9))
def test_shards_are_disjoint_and_complete_and_keep_twins_together(count):
    cells = cells_of(TWINS, seeds=(0, 1))
    shards = [[cell.name for cell in Shard(index, count).of(cells)] for index in range(count)]
    assert sorted(name for shard in shards for name in shard) == sorted(cell.name for cell in cells)
    for cell in cells:
        [shard] = [shard for shard in shards if cell.name in shard]
        assert cell.twin is None or cell.twin in shard
    sizes = [len(shard) for shard in shards]
    assert max(sizes) - min(sizes) <= 2, "a training and its twin more or less"


def test_cells_that_cannot_run_stop_the_sweep_before_it_starts(caplog):
    points = [{"moe.num_experts": 4}, {"moe.num_experts": -1}, {"moe.top_k": 8}]
    with pytest.raises(
        ValueError,
        match=r"^2 of 3 cells cannot run, and none was started\. num_experts=-1,seed=0: moe.num_experts=-1 is neg",
    ):
        checked_cells(Sweep(points), base(), 1)
    listed = [record.getMessage().split(":")[0] for record in caplog.records]
    assert listed == [
        "num_experts=-1,seed=0",
        "top_k=8,seed=0",
    ]


@pytest.mark.parametrize("points, seeds", [(1, 4), (2, 2), (3, 2), (4, 1), (9, 1)])
def test_a_smoke_run_is_at_least_four_short_cells_from_end_to_end_of_the_sweep(points, seeds):
    sweep = Sweep([{"moe.capacity_factor": 1.0 + i} for i in range(points)], seeds=(5, 6, 7))
    small, config = smoke(sweep, base({"data.source": "pypi:django==5.1.4"}))
    cells = checked_cells(small, config, 1)
    assert len(cells) >= 4
    assert len(small.seeds) == seeds
    assert {cell.run.train.steps for cell in cells} == {20}
    assert {cell.run.data.source for cell in cells} == {"stdlib"}
    assert [small.points[0], small.points[-1]] == [sweep.points[0], sweep.points[-1]]


def test_a_smoke_run_keeps_swept_fields_groups_and_does_without_a_baseline_it_leaves_out(caplog):
    points = [{"train.steps": steps, "moe.num_experts": 2**i} for i, steps in enumerate(range(30, 39))]
    sweep = Sweep(points, derive=[fixed_group(min_slots=2)], baseline=points[1])
    small, config = smoke(sweep, base({"data.batch_size": 64}))
    caplog.set_level("INFO")
    cells = checked_cells(small, config, 1)
    assert small.baseline is None
    assert [cell.run.train.steps for cell in cells] == [30, 32, 35, 38]
    assert "Derived, whatever the config says: moe.group_size=256\n" in caplog.text
    assert caplog.text.count("Derived") == 1
    whole, _ = make_cells(sweep, base({"data.batch_size": 64}), 1)
    assert {cell.run.moe.group_size for cell in cells} == {whole[0].run.moe.group_size}


class Instant:
    """Every cell that is started is finished."""

    def __init__(self, ledger):
        self.ledger, self.started = ledger, []

    def start(self, workdir, worker):
        self.started.append(workdir.name)
        [cell] = [cell for cell in self.ledger.cells if cell.name == workdir.name]
        finish(workdir, cell)
        return self

    def poll(self):
        return 0

    def stop(self):
        raise AssertionError


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "sweep", cells_of(grid(FACTORS)))


def test_a_shard_runs_its_cells_only(ledger):
    launcher = Instant(ledger)
    assert run_sweep(ledger, launcher, 1, shard=Shard(0, 2)) == 0
    assert launcher.started == [ledger.cells[0].name, ledger.cells[2].name]
    assert [ledger.status(cell) for cell in ledger.cells] == ["finished", "pending", "finished"]


def test_shards_share_the_directory_and_nobody_else_does(ledger):
    ledger.workdir.mkdir()
    launcher = Instant(ledger)
    with (
        locked(ledger.workdir / "sweep.lock", shared=True, wait=False),
        locked(ledger.workdir / "shard_0_of_2.lock", wait=False),
    ):
        for shard in (Shard(), Shard(0, 2)):
            with pytest.raises(ValueError, match=rf"^--workdir={re.escape(str(ledger.workdir))}: another sweep runs"):
                run_sweep(ledger, launcher, 1, shard=shard)
        assert not launcher.started
        assert run_sweep(ledger, launcher, 1, shard=Shard(1, 2)) == 0
    assert launcher.started == [ledger.cells[1].name]
    assert run_sweep(ledger, launcher, 1) == 0


def test_a_refused_sweep_starts_nothing_and_lets_go(ledger):
    assert run_sweep(ledger, Instant(ledger), 1) == 0
    wider = Ledger(ledger.workdir, cells_of(grid(FACTORS), seeds=(0, 1)))
    launcher = Instant(wider)
    with pytest.raises(ValueError, match="--add_cells"):
        run_sweep(wider, launcher, 1)
    assert not launcher.started
    assert run_sweep(wider, launcher, 1, add_cells=True) == 0
    assert launcher.started == [cell.name for cell in wider.cells if cell.run.seed == 1]
