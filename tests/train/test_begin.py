"""A work directory whose weights were given."""

import json
import shutil

import jax
import numpy as np
import pytest

from moe_jax.config.rules import ConfigError
from moe_jax.train.begin import begin
from moe_jax.train.checkpoints import Checkpoints
from moe_jax.train.evaluate_checkpoint import evaluate_checkpoint
from moe_jax.train.loop import train
from moe_jax.train.setup import set_up


@pytest.fixture(scope="module")
def begun(make_run, set_up_once, tmp_path_factory):
    """A directory at step 0, and its weights. Not to be written to."""
    workdir = tmp_path_factory.mktemp("begun") / "run"
    setup, state = set_up_once({"moe.bias_rate": 0.01})
    begin(setup.run, workdir, state.variables, "somewhere")
    return workdir, jax.device_get(state.variables)


def copy(begun, tmp_path):
    return shutil.copytree(begun[0], tmp_path / "run")


def test_evaluation_reads_the_weights(begun, make_run, set_up_once, tmp_path):
    workdir = copy(begun, tmp_path)
    run = make_run({"moe.bias_rate": 0.01})
    evaluate_checkpoint(run, workdir)
    setup, state = set_up_once({"moe.bias_rate": 0.01})
    expected = setup.evaluate(setup.compile_eval_step(), state.variables, batches=0)
    found = json.loads((workdir / "eval.json").read_text())
    assert found["step"] == 0
    np.testing.assert_allclose(found["loss"], expected.as_dict()["loss"], rtol=1e-6)


def test_any_training_of_the_model_begins_there(begun, make_run, tmp_path, caplog):
    """Other data order, optimiser, losses and capacity; a rate of almost nothing leaves the weights where they were."""
    workdir, (_, params, biases) = copy(begun, tmp_path), begun[1]
    fields = {
        "seed": 5, "train.optimizer": "adafactor", "train.learning_rate": 1e-12, "train.steps": 1, "moe.z_loss": 0.1,
        "moe.capacity_factor": 3.0, "data.batch_size": 4, "train.trainable": ("router",), "moe.bias_rate": 0.125,
    }  # fmt: skip
    assert train(make_run(fields), workdir) == 0
    with Checkpoints(workdir) as checkpoints:
        after = jax.device_get(checkpoints.restore_weights(set_up(make_run(fields)).shapes.variables))
    assert after.step == 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), after.params, params)
    assert {0.125} == {abs(move) for b, a in zip(*map(jax.tree.leaves, (biases, after.balance_bias)), strict=True)
                       for move in np.ravel(a - b) if move}  # fmt: skip
    assert json.loads((workdir / "summary.json").read_text())["origin"] == "somewhere"
    assert json.loads((workdir / "config.json").read_text())["origin"] == "somewhere"
    with pytest.raises(ConfigError, match=r"another run .*moe\.z_loss was 0\.1, is 0\.0"):  # now it is a run of its own
        train(make_run(fields | {"moe.z_loss": 0.0}), workdir)


def test_another_model_is_refused(begun, make_run):
    with pytest.raises(ConfigError, match=r"weights of another model, from somewhere .*attention\.rope_theta"):
        train(make_run({"moe.bias_rate": 0.01, "attention.rope_theta": 5.0}), begun[0])


def test_a_directory_that_is_used_is_refused(begun, set_up_once, tmp_path):
    setup, state = set_up_once({"moe.bias_rate": 0.01})
    with pytest.raises(ConfigError, match="holds a run already"):
        begin(setup.run, begun[0], state.variables, "elsewhere")
    (tmp_path / "checkpoints" / "8").mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds a run already"):
        begin(setup.run, tmp_path, state.variables, "elsewhere")


def test_an_import_that_was_killed_can_be_done_again(set_up_once, make_run, tmp_path):
    setup, state = set_up_once({"moe.bias_rate": 0.01})
    (tmp_path / "checkpoints" / "0.orbax-checkpoint-tmp-3").mkdir(parents=True)
    begin(setup.run, tmp_path, state.variables, "elsewhere")
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(ConfigError, match="began with weights from elsewhere and has no checkpoint any more"):
        train(make_run({"moe.bias_rate": 0.01}), tmp_path)
