import csv
import json
import math
import subprocess
import sys

import pytest
from tiny_sweep import cells_of, finish
from work_directories import cell, write_run

from moe_jax.report.compare import compare, table
from moe_jax.report.points import gather
from moe_jax.report.records import read_record
from moe_jax.report.sweep_plots import figures
from moe_jax.report.sweep_tables import results as results_table
from moe_jax.sweep.ledger import Ledger
from moe_jax.tasks import results
from moe_jax.tasks.results import Result, columns, hparams_metrics, results_of, summarize

EVERYTHING = {  # what the trainer measures of a run, apart from metrics of its last step
    **dict.fromkeys(["eval_loss", "eval_bits_per_byte", "tokens_per_second"], 1.5),
    **dict.fromkeys(["steps", "training_seconds", "startup_seconds"], 8),
    **dict.fromkeys(["total_params", "active_params", "flops_per_token"], 7),
    "eval_bits_per_byte_by_domain": {"prose": 1.5},
    "epochs_by_source": {"stdlib": 0.5},
    "data_sha256": "0" * 64,
}


@pytest.fixture
def entropy(monkeypatch):
    """A result that nobody has heard of, declared as one entry."""
    new = Result(
        "entropy", header="entropy", show=results.two_digits, metric="moe/router_entropy", kind="routing",
        meaning="entropy of the router in nats", running_header="entropy", is_hparams_metric=True,
    )  # fmt: skip
    monkeypatch.setattr(results, "RESULTS", (*results.RESULTS, new))
    return new


def test_a_new_entry_is_in_the_summary(entropy):
    assert summarize(EVERYTHING, {"moe/router_entropy": 0.75})["entropy"] == 0.75


def test_a_new_entry_is_a_metric_of_hparams(entropy):
    assert hparams_metrics()[-1] == "entropy"


def test_a_new_entry_is_a_column_of_sweep_csv(entropy, tmp_path):
    ledger = Ledger(tmp_path, cells_of([{}]))
    ledger.open(add_cells=False)
    workdir = ledger.workdir_of(ledger.cells[0].name)
    finish(workdir, ledger.cells[0])
    path = workdir / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"entropy": 0.75}))
    ledger.write_csv()
    with (tmp_path / "sweep.csv").open(newline="") as file:
        [row] = csv.DictReader(file)
    assert row["entropy"] == "0.75"


def test_a_new_entry_is_a_column_of_comparisons_and_older_runs_lack_it(entropy, tmp_path):
    workdirs = write_run(tmp_path / "new", [1.0], entropy=0.75), write_run(tmp_path / "old", [1.0])
    compared = compare([read_record(workdir) for workdir in workdirs])
    header, _, new, old, *_ = table(compared).splitlines()
    at = [text.strip() for text in header.split("|")].index("entropy")
    assert [line.split("|")[at].strip() for line in (new, old)] == ["0.75", "-"]
    assert "; entropy of the router in nats." in table(compared)


def test_a_new_entry_is_in_the_tables_and_pictures_of_sweeps(entropy, tmp_path):
    values = {0: (0.5, 1.0), 4: (0.25, 0.25)}
    cells = [
        cell(tmp_path, {"moe.num_experts": e}, seed, [2.0], entropy=value)
        for e, of_seeds in values.items()
        for seed, value in enumerate(of_seeds)
    ]
    sweep = gather(cells)
    header, _, *rows = results_table(sweep)[1].splitlines()
    at = [text.strip() for text in header.split("|")].index("entropy")
    assert [row.split("|")[at].strip() for row in rows] == ["0.75", "0.25"]
    assert figures(sweep)["dropped_and_max_violation"].axes[-1].get_ylabel() == "entropy"


def test_a_result_without_value_or_metric_is_named(monkeypatch):
    monkeypatch.setattr(results, "RESULTS", (*results.RESULTS, Result("memory")))
    with pytest.raises(ValueError, match="no value for the result memory: measure it, or name its metric"):
        summarize(EVERYTHING, {})


def test_a_dense_model_drops_nothing_and_a_run_without_steps_has_no_loss():
    summary = summarize(EVERYTHING, {})
    assert (summary["dropped_fraction"], summary["max_violation"]) == (0.0, 0.0)
    assert math.isnan(summary["train_loss"])


def test_the_columns_of_sweep_csv_stay_in_their_order():
    """Readers of committed tables rely on it."""
    expected = "steps train_loss eval_loss eval_bits_per_byte dropped_fraction max_violation tokens_per_second"
    expected += " training_seconds startup_seconds total_params active_params flops_per_token data_sha256"
    assert columns() == tuple(expected.split())
    assert set(summarize(EVERYTHING, {})) == {*columns(), "eval_bits_per_byte_by_domain", "epochs_by_source"}


def test_the_metrics_of_hparams():
    expected = "eval_loss eval_bits_per_byte train_loss tokens_per_second dropped_fraction max_violation"
    assert set(hparams_metrics()) == set(expected.split())


def test_what_counts_tokens_or_bytes_belongs_to_the_text_task():
    own = {result.name for result in results_of("text") if result.task == "text"}
    assert own == {
        "eval_loss",
        "eval_bits_per_byte",
        "eval_bits_per_byte_by_domain",
        "epochs_by_source",
        "tokens_per_second",
        "flops_per_token",
    }
    with pytest.raises(ValueError, match="'chess' is not a task with results: declare it in TERMS and RESULTS"):
        results_of("chess")


def test_a_value_that_is_not_there_or_not_finite_is_a_dash():
    result = Result("x", show=results.percent)
    assert [result.text(value) for value in (0.125, None, math.nan, math.inf)] == ["12.50%", "-", "-", "-"]


@pytest.mark.parametrize("module", ["tasks.results", "journal.reading", "journal.hparams", "report.sweep"])
def test_reports_need_no_jax(module):
    check = f"import sys, moe_jax.{module}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
