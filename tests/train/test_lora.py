"""Low-rank adapters: they begin as nothing, learn alone, merge into the weights, and mean the same on every mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe_jax.config.rules import ConfigError
from moe_jax.config.schema import LoraConfig, MeshConfig
from moe_jax.moe.lora import merged
from moe_jax.parallel.mesh import make_mesh
from moe_jax.resolve.counting import count
from moe_jax.tasks.registry import task_of
from moe_jax.train.begin import begin
from moe_jax.train.loop import train
from moe_jax.train.setup import set_up
from moe_jax.train.state import build_model, init_state, num_params

MODEL = {
    "model.num_layers": 2, "moe.every": 2, "moe.num_shared_experts": 1, "model.activation": "swiglu",
    "moe.capacity_factor": 4.0, "moe.eval_capacity_factor": 4.0, "moe.top_k": 2, "moe.router": "top_k",
}  # fmt: skip
LORA = {"lora.rank": 3, "lora.alpha": 6.0, "lora.targets": ("attention", "experts", "shared", "dense")}


def names(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def with_adapters(base, drawn, scale):
    """The weights of `base`, and adapters whose A is drawn and whose B is too, times `scale`."""
    plain, random = names(base), np.random.RandomState(0)
    fill = {}
    for name, leaf in names(drawn).items():
        fill[name] = plain.get(name, leaf)
        if name.endswith("/b"):
            fill[name] = jnp.asarray(scale * random.randn(*leaf.shape), leaf.dtype)
    return jax.tree.unflatten(jax.tree.structure(drawn), list(fill.values()))


@pytest.fixture(scope="module")
def setups(make_run):
    """Of the plain model, of that with adapters, and of that on eight devices."""
    mesh = {"mesh.fsdp": 2, "mesh.expert": 2, "mesh.tensor": 2}
    found = [set_up(make_run(MODEL)), set_up(make_run(MODEL | LORA)), set_up(make_run(MODEL | LORA | mesh, 8))]
    states = [init_state(setup.task, setup.shapes, setup.optimizer) for setup in found[:2]]
    params = with_adapters(states[0].params, states[1].params, 0.3)
    return found, states, params


def evaluated(setup, state, params):
    params = jax.device_put(params, jax.tree.map(lambda leaf: leaf.sharding, setup.shapes.params))
    step = jax.device_put(jnp.int32(0), setup.shapes.step.sharding)
    variables = state.variables._replace(params=params, step=step)
    return setup.evaluate(setup.compile_eval_step(), variables, batches=0).scores.overall["loss"]


def test_adapters_begin_as_nothing_and_merge(setups):
    (plain, adapted, meshed), states, params = setups
    lora = adapted.run.lora
    untouched = evaluated(plain, states[0], states[0].params)
    assert evaluated(adapted, states[1], with_adapters(states[0].params, states[1].params, 0.0)) == untouched
    changed = evaluated(adapted, states[1], params)
    assert abs(changed - untouched) > 1e-3
    np.testing.assert_allclose(evaluated(plain, states[0], merged(params, lora)), changed, rtol=1e-5)
    np.testing.assert_allclose(evaluated(meshed, states[1], params), changed, rtol=1e-5)


def test_what_is_merged_by_hand():
    lora = LoraConfig(rank=1, alpha=3.0)
    params = {"q": jnp.ones((2, 2)), "lora": {"q": {"a": jnp.array([[1.0], [2.0]]), "b": jnp.array([[10.0, 0.0]])}}}
    np.testing.assert_array_equal(merged(params, lora)["q"], [[31, 1], [61, 1]])
    assert merged(params, lora).keys() == {"q"}


def test_only_adapters_learn_and_alike_on_every_mesh(setups):
    (_, adapted, meshed), states, params = setups
    batch = next(adapted.data.train_batches(0, 1))
    found = []
    for setup in (adapted, meshed):
        placed = jax.device_put(states[1]._replace(params=params), jax.tree.map(lambda s: s.sharding, setup.shapes))
        placed = jax.tree.map(jnp.copy, placed)
        after, metrics = setup.compile_train_step()(placed, setup.place(batch))
        moments = names(optax.tree.get(after.opt_state, "mu"))
        assert moments and all("/lora/" in name for name in moments)
        before, now = names(jax.device_get(params)), names(jax.device_get(after.params))
        moved = {name for name in now if (now[name] != before[name]).any()}
        assert moved == moments.keys()
        found.append((jax.device_get(moments), float(metrics.loss), float(metrics.grad_norm)))
    (one, loss, norm), (eight, *others) = found
    np.testing.assert_allclose(others, [loss, norm], rtol=1e-5)
    for name, moment in one.items():
        assert np.abs(moment).max() > 0, name
        np.testing.assert_allclose(eight[name], moment, rtol=2e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    "fields, matrices",
    [
        ({}, 4 * 2 + 3 + 3 + 3),  # attention of two layers, dense, experts, shared
        ({"lora.targets": ("experts",), "train.trainable": ("router",)}, 3),
        ({"lora.targets": ("*/attention/q", "*/moe/experts/down")}, 3),
        ({"attention.kind": "latent", "attention.kv_rank": 8, "attention.rope_dim": 4, "attention.query_rank": 8,
          "lora.targets": ("attention",)}, 10),
    ],
)  # fmt: skip
def test_counts_are_those_of_the_tree(make_run, fields, matrices):
    run = make_run(MODEL | LORA | fields)
    model = build_model(task_of(run), make_mesh(MeshConfig()))
    assert num_params(model.shapes) == count(run).total_params
    adapters = [name for name in names(model.shapes) if "/lora/" in name]
    assert len(adapters) == 2 * matrices
    plain = dataclasses.replace(run, lora=LoraConfig())
    assert count(run).total_params - count(plain).total_params == sum(
        np.prod(names(model.shapes)[name].shape) for name in adapters
    )
    trained = {name for name, is_trained in names(model.trained).items() if is_trained}
    assert trained - set(adapters) == {
        name for name in names(model.shapes) if fields.get("train.trainable") and "router" in name
    }


def test_a_run_with_adapters_begins_with_weights_of_a_plain_one(setups, make_run, tmp_path):
    (plain, *_), (state, _), _ = setups
    begin(plain.run, tmp_path / "run", state.variables, "somewhere")
    run = make_run(MODEL | LORA | {"train.steps": 2, "train.learning_rate": 1e-2})
    assert train(run, tmp_path / "run") == 0
    assert train(make_run(MODEL | LORA | {"train.steps": 3, "train.learning_rate": 1e-2}), tmp_path / "run") == 0


def test_refused(make_run):
    with pytest.raises(ConfigError, match=r"lora\.targets: 'router' matches no matrix that may have an adapter"):
        build_model(task_of(make_run(MODEL | LORA | {"lora.targets": ("router",)})), make_mesh(MeshConfig()))
