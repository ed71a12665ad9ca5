import gzip
import json
import math

import jax
import jax.numpy as jnp
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.util import tensor_util

from moe_jax.resolve.counting import count
from moe_jax.train.evaluate_checkpoint import evaluate_checkpoint
from moe_jax.train.loop import train
from moe_jax.train.setup import Setup

DENSE = {"moe.num_experts": 0}


@pytest.fixture(scope="module")
def trained(make_run, tmp_path_factory):
    """(run, its work directory) after six steps: logged at 2, 4 and 6, evaluated at 3 and 6, saved at 4 and 6."""
    directory = tmp_path_factory.mktemp("trained")
    run = make_run({"train.profile": (2, 2)})
    assert train(run, directory) == 0
    return run, directory


@pytest.fixture(scope="module")
def trained_dense(make_run, tmp_path_factory):
    """A dense run of two steps whose profile asks for more."""
    directory = tmp_path_factory.mktemp("dense")
    run = make_run(DENSE | {"train.steps": 2, "log.every": 1, "train.profile": (1, 10)})
    assert train(run, directory) == 0
    return run, directory


def read_lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def read_summary(directory):
    return json.loads((directory / "summary.json").read_text())


def events(directory):
    reader = EventAccumulator(str(directory), size_guidance={"tensors": 0})
    reader.Reload()
    return reader


def session_status(directory):
    """How the HParams session ended."""
    reader = events(directory / "tensorboard/hparams")
    content = reader.SummaryMetadata(hparams_metadata.SESSION_END_INFO_TAG).plugin_data.content
    return hparams_metadata.parse_session_end_info_plugin_data(content).status


def test_lines_of_metrics(trained):
    _, directory = trained
    lines = read_lines(directory)
    assert [(line["step"], "train/loss" in line, "eval/loss" in line) for line in lines] == [
        (2, True, False),
        (3, False, True),
        (4, True, False),
        (6, True, False),
        (6, False, True),
    ]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    names = {name for line in lines for name in line}
    assert names >= {"train/grad_norm", "train/learning_rate", "train/tokens_per_second", "train/step_seconds"}
    assert names >= {
        "moe/balance_loss",
        "moe/z_loss",
        "moe/dropped_fraction",
        "moe/max_violation",
        "moe/router_entropy",
    }
    assert names >= {"moe/dropped_fraction_layer_0", "moe/dropped_fraction_rank_0", "moe/dropped_fraction_position_7"}
    assert names >= {"moe/experts_per_token", "eval/bits_per_byte_prose", "eval/dropped_fraction"}
    assert not [name for name in names if name.startswith("moe/load/")]  # only where log.expert_loads asks for them
    assert lines[-1]["eval/loss"] < lines[1]["eval/loss"]


def test_summary(trained):
    run, directory = trained
    summary, lines = read_summary(directory), read_lines(directory)
    assert set(summary) == {
        "steps",
        "train_loss",
        "eval_loss",
        "eval_bits_per_byte",
        "eval_bits_per_byte_by_domain",
        "epochs_by_source",
        "tokens_per_second",
        "training_seconds",
        "startup_seconds",
        "total_params",
        "active_params",
        "flops_per_token",
        "dropped_fraction",
        "max_violation",
        "data_sha256",
    }
    assert summary["steps"] == 6
    assert summary["train_loss"] == lines[-2]["train/loss"]
    assert summary["dropped_fraction"] == lines[-2]["moe/dropped_fraction"]
    assert summary["max_violation"] == lines[-2]["moe/max_violation_window"]
    assert summary["eval_loss"] == lines[-1]["eval/loss"]
    (epochs,) = summary["epochs_by_source"].values()
    assert 0.1 < epochs < 0.3
    assert summary["eval_bits_per_byte"] == lines[-1]["eval/bits_per_byte"]
    counts = count(run)
    assert summary["total_params"] == counts.total_params > summary["active_params"] == counts.active_params
    assert summary["flops_per_token"] == counts.flops_per_token
    assert summary["tokens_per_second"] > 0
    assert len(bytes.fromhex(summary["data_sha256"])) == 32


def test_what_tensorboard_gets(trained):
    _, directory = trained
    reader = events(directory / "tensorboard")
    plugins = {tag: reader.SummaryMetadata(tag).plugin_data.plugin_name for tag in reader.Tags()["tensors"]}
    assert plugins["moe/load"] == "images"
    assert plugins["moe/probability_layer_0"] == "histograms"
    assert plugins["config"] == "text"
    lines = read_lines(directory)
    assert {tag for tag, plugin in plugins.items() if plugin == "scalars"} == {
        name for line in lines for name in line if name != "step"
    }
    losses = [
        (event.step, float(tensor_util.make_ndarray(event.tensor_proto))) for event in reader.Tensors("train/loss")
    ]
    assert losses == [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]
    assert b"num_experts" in reader.Tensors("config")[0].tensor_proto.string_val[0]


def test_hparams_session_succeeds_with_the_final_metrics(trained):
    _, directory = trained
    assert session_status(directory) == api_pb2.STATUS_SUCCESS
    reader, summary = events(directory / "tensorboard/hparams"), read_summary(directory)
    (final,) = reader.Tensors("eval_loss")
    assert float(tensor_util.make_ndarray(final.tensor_proto)) == pytest.approx(summary["eval_loss"], rel=1e-6)


def traces(directory):
    return list((directory / "profile").rglob("*.trace.json.gz"))


def test_a_profile_is_traced(trained):
    _, directory = trained
    (trace,) = traces(directory)
    assert json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]


def test_layers_of_their_own_numbers_of_experts_run_under_debug_nans_and_write_their_loads(make_run, tmp_path):
    """What a layer does not have and others have is nowhere a NaN on the device."""
    fields = {
        "model.num_layers": 2, "moe.num_experts_by_layer": (2, 4), "log.expert_loads": True, "train.steps": 1,
        "eval.batches": 1,
    }  # fmt: skip
    with jax.debug_nans(True):
        with pytest.raises(FloatingPointError):
            jnp.log(-jnp.ones(()))
        assert train(make_run(fields), tmp_path) == 0
    scalars, loads, evaluation = read_lines(tmp_path)
    assert "train/loss" in scalars and "eval/loss" in evaluation
    assert list(loads) == ["step", "moe/load/layer_00", "moe/load/layer_01"]
    for layer, experts in enumerate((2, 4)):
        load = loads[f"moe/load/layer_{layer:02}"]
        assert len(load) == experts
        assert sum(load) / experts == pytest.approx(1, rel=1e-6)
        assert max(load) - 1 == pytest.approx(scalars[f"moe/max_violation_layer_{layer}"], rel=1e-5)
    reader = events(tmp_path / "tensorboard")
    assert reader.SummaryMetadata("moe/load/layer_01").plugin_data.plugin_name == "histograms"


def test_a_profile_that_the_run_ends_in_is_traced_too(trained_dense):
    _, directory = trained_dense
    (trace,) = traces(directory)
    assert json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]


def test_a_dense_run_says_nothing_about_routing(trained_dense):
    _, directory = trained_dense
    assert {name.split("/")[0] for line in read_lines(directory) for name in line} == {"step", "train", "eval"}
    assert [line["step"] for line in read_lines(directory)] == [1, 2, 2]
    summary = read_summary(directory)
    assert summary["dropped_fraction"] == summary["max_violation"] == 0
    assert summary["total_params"] == summary["active_params"]
    assert not [tag for tag in events(directory / "tensorboard").Tags()["tensors"] if tag.startswith("moe/")]


def test_evaluating_the_checkpoint_gives_what_training_ended_with(trained, capsys):
    run, directory = trained
    evaluate_checkpoint(run, directory)
    result, summary = json.loads((directory / "eval.json").read_text()), read_summary(directory)
    assert result["step"] == 6
    assert result["loss"] == summary["eval_loss"]
    assert result["bits_per_byte"] == summary["eval_bits_per_byte"]
    assert result["data_sha256"] == summary["data_sha256"]
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["bits", "all", "numbers", "prose"]


def all_files(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_finished_run_stays_as_it_is(trained_dense):
    run, directory = trained_dense
    before = all_files(directory)
    assert train(run, directory) == 0
    assert all_files(directory) == before


def test_a_run_killed_before_its_summary_writes_it(trained_dense):
    """All steps are in the checkpoint: what they reported is in metrics.jsonl."""
    run, directory = trained_dense
    before = read_summary(directory)
    (directory / "summary.json").unlink()
    assert train(run, directory) == 0
    after = read_summary(directory)
    assert after.pop("startup_seconds") == 0 and before.pop("startup_seconds") > 0
    assert after.pop("tokens_per_second") > 0 and before.pop("tokens_per_second") > 0
    assert after == before
    assert session_status(directory) == api_pb2.STATUS_SUCCESS


def test_data_that_is_not_there(make_run, tmp_path):
    with pytest.raises(ValueError, match=r"data.source='text:/no/where' does not exist: check the path") as error:
        train(make_run({"data.source": "text:/no/where"}), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [
        "train.lock"
    ]  # with the path corrected, the same command works


def test_a_failure_is_marked_and_nothing_is_saved(make_run, tmp_path, monkeypatch):
    place, batches = Setup.place, []

    def fail_at_the_third(self, batch):
        batches.append(batch)
        if len(batches) == 3:
            raise OSError("the disk is gone")
        return place(self, batch)

    monkeypatch.setattr(Setup, "place", fail_at_the_third)
    with pytest.raises(OSError, match="the disk is gone"):
        train(make_run(DENSE | {"log.every": 1, "train.profile": (1, 10)}), tmp_path)
    assert session_status(tmp_path) == api_pb2.STATUS_FAILURE
    assert [line["step"] for line in read_lines(tmp_path)] == [1, 2]
    assert list((tmp_path / "checkpoints").iterdir()) == []
    assert not (tmp_path / "summary.json").exists()
    assert traces(tmp_path)  # and the next run of this process can profile
