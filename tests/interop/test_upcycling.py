"""An MoE model that begins as a dense one."""

import json

import jax
import numpy as np
import pytest

from moe_jax.config.rules import ConfigError
from moe_jax.config.schema import default_config
from moe_jax.interop.upcycling import Options, upcycle
from moe_jax.interop.work_directory import config_of_run, newest_weights, on_mesh, one_sequence_a_device
from moe_jax.train.begin import begin
from moe_jax.train.evaluate_checkpoint import evaluate_checkpoint
from moe_jax.train.loop import train

DENSE = {"moe.num_experts": 0, "model.num_layers": 4, "model.activation": "swiglu", "model.d_ff": 32}
COPIES = DENSE | {
    "moe.num_experts": 4,
    "moe.top_k": 2,
    "moe.router": "top_k",
    "moe.normalize_gates": True,
    "moe.d_ff": 32,
}
PARTS = COPIES | {"moe.num_experts": 8, "moe.top_k": 4, "moe.d_ff": 16, "moe.every": 2}


@pytest.fixture(scope="module")
def dense(make_run, set_up_once, tmp_path_factory):
    """A work directory of a dense run whose weights are drawn."""
    workdir = tmp_path_factory.mktemp("dense") / "run"
    setup, state = set_up_once(DENSE)
    begin(setup.run, workdir, state.variables, "drawn")
    return workdir


@pytest.fixture
def config(tiny):
    def make(fields):
        made = default_config()
        made.update_from_flattened_dict(tiny | fields)
        return made

    return make


def weights_of(workdir):
    run, model = on_mesh(one_sequence_a_device(config_of_run(workdir), {}), {})
    _, weights = newest_weights(workdir, run, model)
    leaves = jax.tree_util.tree_leaves_with_path(weights.params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def test_experts_are_copies(dense, config, make_run, tmp_path):
    """The check inside compares logits; here are weights, evaluation on a mesh, and a run that begins there."""
    upcycle(dense, config(COPIES), tmp_path / "moe", Options())
    old, new = weights_of(dense), weights_of(tmp_path / "moe")
    block = "segments/0/blocks/0"
    for name in ("up", "gate", "down"):
        for expert in range(4):
            np.testing.assert_array_equal(
                new[f"{block}/moe/experts/{name}"][:, expert], old[f"{block}/feed_forward/{name}"]
            )
    np.testing.assert_array_equal(new[f"{block}/attention/q"], old[f"{block}/attention/q"])
    router = new[f"{block}/moe/router/weight"]
    assert router.shape == (4, 16, 4) and 0.015 < router.std() < 0.025
    losses = []
    for workdir, fields, devices in (
        (dense, DENSE, 1),
        (tmp_path / "moe", COPIES | {"moe.eval_capacity_factor": 2.0}, 1),
        (tmp_path / "moe", COPIES | {"moe.eval_capacity_factor": 2.0, "mesh.expert": 2, "mesh.tensor": 2}, 4),
    ):
        evaluate_checkpoint(make_run(fields, devices), workdir)
        losses.append(json.loads((workdir / "eval.json").read_text())["loss"])
    np.testing.assert_allclose(losses[1:], losses[0], rtol=1e-6)
    assert train(make_run(COPIES | {"train.steps": 2}), tmp_path / "moe") == 0


def test_parts_of_copies_are_chosen_together(dense, config, tmp_path):
    """Every other layer becomes experts half as wide: expert 2 n + g is half g of copy n, its output doubled."""
    upcycle(dense, config(PARTS), tmp_path / "moe", Options(router_std=0.0, seed=3))
    old, new = weights_of(dense), weights_of(tmp_path / "moe")
    there, here = "segments/0/blocks/0/feed_forward", "segments/0/blocks/1/moe"
    for expert in range(8):
        half = slice(16 * (expert % 2), 16 * (expert % 2) + 16)
        for place, layer in enumerate((1, 3)):
            np.testing.assert_array_equal(new[f"{here}/experts/up"][place, expert], old[f"{there}/up"][layer][:, half])
            np.testing.assert_array_equal(
                new[f"{here}/experts/down"][place, expert], 2 * old[f"{there}/down"][layer][half]
            )
    np.testing.assert_array_equal(new["segments/0/blocks/0/feed_forward/up"], old[f"{there}/up"][::2])
    router = new[f"{here}/router/weight"]
    np.testing.assert_array_equal(router[..., ::2], router[..., 1::2])
    assert 0.2 < router.std() < 0.3 and (router[..., 0] != router[..., 2]).all()


def test_noise_makes_experts_differ(dense, config, tmp_path):
    upcycle(dense, config(COPIES), tmp_path / "moe", Options(noise=0.1))
    old, new = weights_of(dense), weights_of(tmp_path / "moe")
    added = new["segments/0/blocks/0/moe/experts/up"] - old["segments/0/blocks/0/feed_forward/up"][:, None]
    of_matrix = old["segments/0/blocks/0/feed_forward/up"].std(axis=(-2, -1))[:, None]
    np.testing.assert_allclose(added.std(axis=(-2, -1)) / of_matrix, 0.1, rtol=0.15)
    assert (added[:, 0] != added[:, 1]).all()
    np.testing.assert_array_equal(new["segments/0/blocks/0/attention/q"], old["segments/0/blocks/0/attention/q"])


@pytest.mark.parametrize(
    "fields, words",
    [
        (COPIES | {"moe.normalize_gates": False}, "does not compute what the dense one does: logits differ by"),
        (COPIES | {"moe.routed_scaling": 2.0}, "does not compute what the dense one does"),
        (COPIES | {"model.d_model": 32}, r"model\.d_model=32 and the dense run has 16"),
        (COPIES | {"moe.d_ff": 20}, r"moe\.d_ff=20 cuts the dense model\.d_ff=32"),
        (COPIES | {"moe.d_ff": 8}, r"divide moe\.num_experts=4 and moe\.top_k=2"),
        (COPIES | {"moe.num_shared_experts": 1}, "have no counterpart"),
        (COPIES | {"model.activation": "geglu"}, r"moe\.activation='geglu'"),
        (DENSE, r"moe\.num_experts=0"),
    ],
)
def test_refused_and_nothing_is_written(dense, config, tmp_path, fields, words):
    with pytest.raises(ConfigError, match=words):
        upcycle(dense, config(fields), tmp_path / "moe", Options())
    assert not (tmp_path / "moe").exists()


def test_an_moe_run_is_no_parent(set_up_once, config, tmp_path):
    setup, state = set_up_once({})
    begin(setup.run, tmp_path / "parent", state.variables, "drawn")
    with pytest.raises(ConfigError, match=r"from moe\.num_experts=4"):
        upcycle(tmp_path / "parent", config(COPIES), tmp_path / "moe", Options())
