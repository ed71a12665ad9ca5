import json
import math

import pytest
from work_directories import write_metrics, write_run

from moe_jax.journal.workdir import is_finished
from moe_jax.report.compare import compare, plot, reaches, table
from moe_jax.report.records import CurvePoint, read_record
from moe_jax.tasks import results
from moe_jax.tasks.results import LOSS, Result, Terms


def records(*workdirs):
    return [read_record(workdir) for workdir in workdirs]


def test_a_record_adds_up_steps_seconds_and_flops(tmp_path):
    record = read_record(write_run(tmp_path / "run", [3.0, 2.0], speed=50.0))
    assert record.curve == [CurvePoint(10, 2.0, 700.0, 3.0), CurvePoint(20, 4.0, 1400.0, 2.0)]
    assert record.step_seconds == 0.2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eval_loss", "x"), ("eval_bits_per_byte", [1]), ("tokens_per_second", 10**400), ("flops_per_token", {}),
        ("flops_per_token", 0), ("dropped_fraction", True),
    ],
)  # fmt: skip
def test_a_summary_that_no_run_has_written_is_named(tmp_path, name, value):
    workdir = write_run(tmp_path / "run", [3.0], **{name: value})
    with pytest.raises(ValueError, match=rf"run: summary.json is damaged \({name} is .*\): train the run again"):
        read_record(workdir)
    assert not is_finished(workdir, 10)


def test_times_that_are_unknown(tmp_path):
    workdir = write_run(tmp_path / "run", [3.0])
    for lines, what in (
        ([{"step": 10, "eval/loss": 3.0}], "no train/step_seconds"),
        ([{"step": 10, "train/step_seconds": [1.0], "eval/loss": 3.0}], r"train/step_seconds \[1.0\] at step 10"),
    ):
        write_metrics(workdir, lines)
        with pytest.raises(ValueError, match=rf"has {what}, so the run's time is unknown"):
            read_record(workdir)


def test_a_task_that_is_no_name(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json is not that of a run of moe_jax"):
        read_record(write_run(tmp_path / "run", [3.0], config={"task": [1]}))


def test_time_passes_evenly_between_two_logged_steps(tmp_path):
    workdir = write_run(tmp_path / "run", [3.0])
    speeds = [{"step": 20, "train/step_seconds": 0.2}, {"step": 40, "train/step_seconds": 0.1}]
    evaluations = [{"step": step, "eval/loss": 1.0} for step in (10, 30, 40)]
    write_metrics(workdir, sorted(speeds + evaluations, key=lambda line: line["step"]))
    assert [point.seconds for point in read_record(workdir).curve] == [2.0, 5.0, 6.0]


def test_the_point_of_reaching_a_loss_is_interpolated():
    curve = [CurvePoint(10, 1.0, 100.0, 3.0), CurvePoint(20, 2.0, 200.0, 2.0), CurvePoint(30, 3.0, 300.0, 1.8)]
    assert reaches(curve, 2.25) == pytest.approx(CurvePoint(17.5, 1.75, 175.0, 2.25))
    assert reaches(curve, 3.5).step == 10  # already there at the first evaluation
    assert reaches(curve, 1.0) is None


def test_a_loss_is_not_interpolated_from_one_that_is_not_a_number():
    curve = [CurvePoint(10, 1.0, 100.0, 3.0), CurvePoint(20, 2.0, 200.0, math.nan), CurvePoint(30, 3.0, 300.0, 1.5)]
    assert reaches(curve, 2.0) == curve[2]
    assert reaches(curve, math.nan) is None


@pytest.fixture
def chess(monkeypatch):
    """A task that nobody has heard of: config fields and results of a run of two games a step."""
    own = [
        Result(LOSS, header="puzzle loss", unit="nats a move", metric="puzzle/loss", task="chess", required=True),
        Result("flops_per_game", task="chess", required=True),
    ]
    monkeypatch.setattr(results, "RESULTS", (*results.RESULTS, *own))
    monkeypatch.setitem(results.TERMS, "chess", Terms("flops_per_game", units=("data.games",), same=()))
    return {"task": "chess", "data.games": 2}


def write_chess(workdir, config, loss):
    workdir = write_run(workdir, [loss], config=config, flops_per_game=11)
    write_metrics(workdir, [{"step": 10, "train/step_seconds": 0.5}, {"step": 10, "puzzle/loss": loss}])
    return workdir


def test_a_run_is_read_and_shown_by_the_results_of_its_own_task(chess, tmp_path):
    one, other = records(write_chess(tmp_path / "a", chess, 3.0), write_chess(tmp_path / "b", chess, 2.0))
    assert one.task == "chess"
    assert one.curve == [CurvePoint(10, 5.0, 10 * 2 * 11.0, 3.0)]
    text = table(compare([one, other]))
    assert "puzzle loss" in text and "nats a move" in text and "bits per byte" not in text
    assert plot([one, other]).axes[0].get_ylabel() == "puzzle loss (nats a move)"


def test_runs_of_different_tasks_do_not_compare(chess, tmp_path):
    runs = records(write_run(tmp_path / "text", [3.0]), write_chess(tmp_path / "chess", chess, 3.0))
    with pytest.raises(ValueError, match=r"^text and chess have different tasks \(text and chess\): .* leave one"):
        compare(runs)


def test_a_task_that_is_not_known(tmp_path):
    with pytest.raises(ValueError, match=r"config.json is not that of a run of moe_jax: name another"):
        read_record(write_run(tmp_path / "run", [3.0], config={"task": "go"}))


def test_finished_runs_of_older_releases_are_read_and_the_format_is_no_difference(tmp_path):
    """They have neither a task nor a format in config.json."""
    old, new = records(
        write_run(tmp_path / "old", [3.0]), write_run(tmp_path / "new", [3.0], config={"task": "text", "format": 2})
    )
    assert old.task == new.task == "text"
    assert "format" not in compare([old, new])["differences"]


@pytest.fixture
def three_runs(tmp_path):
    """A dense baseline, a sparse run that reaches its loss, one that does not."""
    return records(
        write_run(tmp_path / "dense", [3.0, 2.5, 2.2, 2.0], 100.0, {"moe.num_experts": 0}),
        write_run(
            tmp_path / "sparse",
            [2.5, 2.0, 1.5, 1.4],
            80.0,
            {"moe.num_experts": 4},
            flops_per_token=14,
            dropped_fraction=0.125,
            max_violation=1.5,
            tokens_per_second=1234.0,
        ),
        write_run(tmp_path / "worse", [4.0, 3.0, 2.9, 2.8], 80.0, {"moe.num_experts": 0}),
    )


def test_ratios_are_those_of_the_baseline_to_each_run(three_runs):
    result = compare(three_runs)
    assert result["loss"] == 2.0
    assert result["runs"]["dense"]["times_fewer_steps"] == 1
    sparse = result["runs"]["sparse"]
    assert sparse["times_fewer_steps"] == 2  # step 20 of 40
    assert sparse["times_less_time"] == pytest.approx(2 * 80 / 100)
    assert sparse["times_fewer_flops"] == 1  # half the steps, each of twice the FLOPs
    assert result["runs"]["worse"]["steps_to_loss"] is None


def test_the_table_holds_results_costs_and_differences(three_runs):
    lines = table(compare(three_runs)).splitlines()
    assert "| sparse | 3 | 14 | 1.4000 | 1.2500 | 12.50% | 1.50 | 1,234 |" in lines
    assert "| sparse | 20 | 2.00x | 1.00x | 1.60x |" in lines
    assert "| worse | not reached | - | - | - |" in lines
    assert "| field | dense | sparse | worse |" in lines
    assert "| moe.num_experts | 0 | 4 | 0 |" in lines
    assert "| data.batch_size" not in "\n".join(lines)  # does not differ


def test_a_text_value_does_not_break_the_table(tmp_path):
    runs = records(
        write_run(tmp_path / "a", [1.0], config={"data.source": "x|y"}),
        write_run(tmp_path / "b", [1.0], config={"data.source": "z"}),
    )
    assert "| data.source | 'x\\|y' | 'z' |" in table(compare(runs)).splitlines()


def test_twins_have_the_same_configuration(tmp_path):
    runs = records(write_run(tmp_path / "a", [1.0]), write_run(tmp_path / "b", [1.0]))
    assert table(compare(runs)).endswith("The runs have the same configuration.")


def test_the_picture_shows_every_run_against_steps_flops_and_seconds(three_runs):
    axes = plot(three_runs).axes
    assert [len(axis.lines) for axis in axes] == [3, 3, 3]
    assert [axis.lines[1].get_xdata()[-1] for axis in axes] == [40, 40 * 10 * 14, 40 * 10 / 80]


def test_a_diverged_run_is_named_so_and_is_no_baseline(tmp_path):
    good, diverged = records(
        write_run(tmp_path / "good", [3.0, 2.0]),
        write_run(tmp_path / "diverged", [3.0, None], eval_bits_per_byte=None),
    )
    text = table(compare([good, diverged])).splitlines()
    assert "| diverged | 3 | 7 | diverged | - | 0.00% | 0.00 | 50 |" in text
    assert "| diverged | not reached | - | - | - |" in text
    with pytest.raises(ValueError, match="diverged, the baseline, ends without a finite held-out loss: name another"):
        compare([diverged, good])


def test_runs_on_different_data_are_not_compared(tmp_path):
    runs = records(write_run(tmp_path / "a", [1.0]), write_run(tmp_path / "b", [1.0], data_sha256="other"))
    with pytest.raises(ValueError, match="a and b have different data"):
        compare(runs)


def test_two_runs_of_one_name_are_refused(tmp_path):
    runs = records(write_run(tmp_path / "x" / "run", [1.0]), write_run(tmp_path / "y" / "run", [1.0]))
    with pytest.raises(ValueError, match="same name: rename one"):
        compare(runs)


def test_an_unfinished_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no finished run that can be read"):
        read_record(tmp_path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"step": 10, "train/step_seconds": 0.2}], "metrics.jsonl has no evaluation"),
        ([{"step": 10, "train/step_seconds": None}], "has train/step_seconds null at step 10, .* unknown"),
        ([{"step": 10, "train/step_seconds": 0.0}], "has train/step_seconds 0.0 at step 10, .* unknown"),
    ],
)
def test_metrics_without_times_or_evaluations_are_refused(tmp_path, lines, message):
    workdir = write_run(tmp_path / "run", [1.0])
    write_metrics(workdir, lines)
    with pytest.raises(ValueError, match=f"run: .*{message}"):
        read_record(workdir)


def test_the_files_of_something_else_are_refused(tmp_path):
    workdir = write_run(tmp_path / "run", [1.0])
    (workdir / "summary.json").write_text(json.dumps({"eval_loss": 1.0}))
    with pytest.raises(ValueError, match=r"summary.json lacks eval_bits_per_byte, .*: train the run again"):
        read_record(workdir)
    (workdir / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config.json is not that of a run of moe_jax"):
        read_record(workdir)
