import csv
import dataclasses
import json
import threading

import pytest
from tiny_sweep import cells_of, finish

from moe_jax.sweep import failure
from moe_jax.sweep.ledger import Ledger
from moe_jax.tasks import results
from moe_jax.tasks.results import Result, Terms

POINTS = [{"moe.capacity_factor": factor} for factor in (1.0, 2.0, 4.0)]
NAMES = [f"capacity_factor={factor},seed=0" for factor in (1.0, 2.0, 4.0)]


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "sweep", cells_of(POINTS))
    ledger.open(add_cells=False)
    return ledger


def rows(ledger):
    with (ledger.workdir / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def other(ledger, points=POINTS, fields=None, seeds=(0,)):
    """A sweep on the same directory."""
    return Ledger(ledger.workdir, cells_of(points, seeds, fields))


def test_a_status_follows_from_the_cells_files(ledger):
    cell, (workdir, *_) = ledger.cells[0], [ledger.workdir_of(name) for name in NAMES]
    assert ledger.status(cell) == "pending"
    (workdir / "config.json").write_text("{}")
    assert ledger.status(cell) == "interrupted"
    ledger.fail(cell, "no memory")
    assert (ledger.status(cell), ledger.error(cell)) == ("failed", "no memory")
    ledger.forget_failure(cell)
    assert (ledger.status(cell), ledger.error(cell)) == ("interrupted", "")
    finish(workdir, cell)
    assert ledger.status(cell) == "finished"


def test_a_torn_or_shorter_summary_is_no_end(ledger):
    cell = ledger.cells[0]
    finish(ledger.workdir_of(cell.name), cell)
    path = ledger.workdir_of(cell.name) / "summary.json"
    whole = path.read_text()
    path.write_text(whole[:20])
    assert ledger.status(cell) == "interrupted"
    path.write_text(whole.replace('"steps": 8', '"steps": 7'))
    assert ledger.status(cell) == "interrupted"


def test_a_cell_finds_its_configuration_and_its_twin(tmp_path):
    ledger = Ledger(tmp_path, cells_of([{"moe.eval_capacity_factor": 1.0}, {"moe.eval_capacity_factor": 2.0}]))
    ledger.open(add_cells=False)
    cell = json.loads((ledger.workdir_of(ledger.cells[1].name) / "cell.json").read_text())
    assert cell["fields"]["moe.eval_capacity_factor"] == 2.0
    assert cell["twin"] == ledger.cells[0].name


def test_the_same_sweep_opens_again(ledger):
    before = (ledger.workdir / "sweep.json").read_text()
    other(ledger).open(add_cells=False)
    assert (ledger.workdir / "sweep.json").read_text() == before


@pytest.mark.parametrize(
    "change, reason",
    [
        (
            {"fields": {"model.d_model": 32}},
            r"model.d_model was 16, is 32 in capacity_factor=1.0,seed=0; model.head_dim was 8, is 16 in [^;]*\): c",
        ),
        ({"fields": {"train.steps": 9}}, "train.steps was 8, is 9"),
        ({"points": POINTS[:1]}, rf"holds another sweep \(gone: {NAMES[1]}, {NAMES[2]}\): choose"),
        ({"seeds": (0, 1)}, "holds a smaller sweep, without capacity_factor=1.0,seed=1, .* run with --add_cells"),
    ],
)
def test_another_sweep_on_the_directory_is_refused(ledger, change, reason):
    before = {path: path.read_text() for path in ledger.workdir.rglob("*.json")}
    with pytest.raises(ValueError, match=reason):
        other(ledger, **change).open(add_cells=False)
    assert {path: path.read_text() for path in ledger.workdir.rglob("*.json")} == before


def test_a_sweep_from_before_a_field_goes_on_while_the_field_has_its_default(ledger):
    path = ledger.workdir / "sweep.json"
    cells = json.loads(path.read_text())
    for fields in cells.values():
        del fields["moe.z_loss"]
    path.write_text(json.dumps(cells))
    with pytest.raises(ValueError, match=r"moe.z_loss was 0.0, is 0.5"):
        other(ledger, fields={"moe.z_loss": 0.5}).open(add_cells=False)
    other(ledger).open(add_cells=False)


def test_cells_are_added_on_request_only(ledger):
    larger = other(ledger, seeds=(0, 1))
    larger.open(add_cells=True)
    assert len(json.loads((ledger.workdir / "sweep.json").read_text())) == 6
    larger.open(add_cells=False)
    with pytest.raises(ValueError, match=r"gone: capacity_factor=1.0,seed=1, .* and \d more|gone: "):
        ledger.open(add_cells=True)


def test_added_cells_do_not_excuse_a_changed_field(ledger):
    with pytest.raises(ValueError, match=r"model.d_model was 16, is 32"):
        other(ledger, seeds=(0, 1), fields={"model.d_model": 32}).open(add_cells=True)


def test_what_does_not_change_the_runs_may_change(ledger):
    other(ledger, fields={"log.every": 4, "checkpoint.every": 2, "data.cache_dir": "/elsewhere"}).open(add_cells=False)
    cell = json.loads((ledger.workdir_of(NAMES[0]) / "cell.json").read_text())
    assert cell["fields"]["checkpoint.every"] == 2


def test_a_report_alone_wants_the_same_sweep_there(ledger, tmp_path):
    ledger.check()
    with pytest.raises(ValueError, match=r"train.steps was 8, is 9"):
        other(ledger, fields={"train.steps": 9}).check()
    with pytest.raises(ValueError, match="holds no sweep, and no finished cell"):
        Ledger(tmp_path / "nothing", ledger.cells).check()
    assert not (tmp_path / "nothing").exists()


def test_an_unreadable_sweep_is_named(ledger):
    (ledger.workdir / "sweep.json").write_text("{")
    with pytest.raises(ValueError, match=r"sweep\.json cannot be read"):
        ledger.open(add_cells=False)


def test_jobs_of_an_array_can_open_it_at_the_same_time(tmp_path):
    ledgers = [Ledger(tmp_path / "sweep", cells_of(POINTS)) for _ in range(4)]
    errors, barrier = [], threading.Barrier(len(ledgers))

    def open_often(ledger):
        barrier.wait()
        try:
            for _ in range(10):
                ledger.open(add_cells=False)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=open_often, args=[ledger]) for ledger in ledgers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_the_table_has_a_row_for_every_cell_that_ended(ledger):
    finish(ledger.workdir_of(NAMES[0]), ledger.cells[0])
    ledger.fail(ledger.cells[1], 'out of "memory", twice')
    ledger.add_wall_seconds(ledger.cells[0], 12.5)
    ledger.write_csv()
    first, second = rows(ledger)
    assert (first["cell"], first["moe.capacity_factor"], first["seed"]) == (NAMES[0], "1.0", "0")
    assert (first["status"], first["error"], first["steps"], first["eval_loss"]) == ("finished", "", "8", "1.5")
    assert first["wall_seconds"] == "12.5"
    assert (second["status"], second["error"], second["eval_loss"]) == ("failed", 'out of "memory", twice', "")


def test_the_table_has_the_results_of_the_cells_task(ledger, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", (Result("elo", task="chess"), Result("nats", task="text")))
    monkeypatch.setitem(results.TERMS, "chess", Terms("", (), ()))
    cell = ledger.cells[0]
    chess = Ledger(ledger.workdir, [cell._replace(run=dataclasses.replace(cell.run, task="chess"))])
    finish(chess.workdir_of(cell.name), cell)
    chess.write_csv()
    assert [name for name in rows(chess)[0] if name in ("elo", "nats")] == ["elo"]


def test_wall_seconds_add_up_over_starts_and_shards(ledger):
    finish(ledger.workdir_of(NAMES[0]), ledger.cells[0])
    ledger.add_wall_seconds(ledger.cells[0], 12.5)
    finish(ledger.workdir_of(NAMES[2]), ledger.cells[2])
    later = other(ledger)
    later.add_wall_seconds(later.cells[0], 2.5)
    later.add_wall_seconds(later.cells[2], 3.0)
    later.write_csv()
    assert [(row["cell"], row["wall_seconds"]) for row in rows(ledger)] == [(NAMES[0], "15.0"), (NAMES[2], "3.0")]


def test_a_failure_that_is_forgotten_meanwhile_is_no_error(ledger, monkeypatch):
    """Another shard may start the cell again between two looks at its files."""
    monkeypatch.setattr(failure, "is_recorded", lambda workdir: True)
    assert ledger.error(ledger.cells[0]) == ""


def test_results_are_all_cells_for_the_report(ledger):
    ledger.fail(ledger.cells[1], "no memory")
    results = ledger.results()
    assert [(r.name, r.point, r.seed, r.status, r.error) for r in results] == [
        (NAMES[0], POINTS[0], 0, "pending", ""),
        (NAMES[1], POINTS[1], 0, "failed", "no memory"),
        (NAMES[2], POINTS[2], 0, "pending", ""),
    ]
