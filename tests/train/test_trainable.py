import jax
import numpy as np
import optax
import pytest

from moe_jax.config.rules import ConfigError
from moe_jax.config.weights import GROUPS
from moe_jax.train.trainable import pick, put, trained_weights

WEIGHTS = {
    "embedding": 0, "head": 0, "norm": {"scale": 0},
    "segments": {"0": {"blocks": {
        "0": {"attention": {"q": 0, "q_norm": {"scale": 0}}, "feed_forward": {"up": 0}, "norm_attention": {"scale": 0}},
        "1": {"moe": {"router": {"weight": 0}, "experts": {"up": 0}, "shared": {"up": 0}, "shared_gate": 0}},
    }}},
}  # fmt: skip
BLOCK = "segments/0/blocks"


def chosen(*patterns):
    leaves = jax.tree_util.tree_leaves_with_path(trained_weights(WEIGHTS, patterns))
    return {jax.tree_util.keystr(path, simple=True, separator="/") for path, trained in leaves if trained}


ALL = chosen()


def test_patterns_and_names():
    assert len(ALL) == len(jax.tree.leaves(WEIGHTS))
    assert chosen("router") == {f"{BLOCK}/1/moe/router/weight"}
    assert chosen("norms") == {"norm/scale", f"{BLOCK}/0/attention/q_norm/scale", f"{BLOCK}/0/norm_attention/scale"}
    assert chosen("shared", "head") == {f"{BLOCK}/1/moe/shared/up", f"{BLOCK}/1/moe/shared_gate", "head"}
    assert chosen("moe", "!router") == {name for name in ALL if "/moe/" in name and "router" not in name}
    assert chosen("!experts") == ALL - {f"{BLOCK}/1/moe/experts/up"}
    assert chosen("segments/*/0/attention/q") == {f"{BLOCK}/0/attention/q"}
    assert set().union(*(chosen(name) for name in GROUPS if name != "lora")) == ALL, "some weight belongs to no group"


@pytest.mark.parametrize(
    "patterns, words",
    [
        (("routers",), "'routers' matches no weight"),
        (("router", "!head", "!typo*"), "'!typo*' matches no weight"),
        (("head", "!head"), "leaves no weight"),
    ],
)
def test_refused(patterns, words):
    with pytest.raises(ConfigError, match=words.replace("*", r"\*")):
        trained_weights(WEIGHTS, patterns)


def test_pick_and_put():
    trained = trained_weights(WEIGHTS, ("router", "head"))
    picked = pick(WEIGHTS, trained)
    assert len(jax.tree.leaves(picked)) == 2
    assert put(jax.tree.map(lambda leaf: 1, picked), WEIGHTS) == jax.tree.map(int, trained)


@pytest.fixture(scope="module")
def states(set_up_once):
    """A step of a run that trains everything, of two that train routers and the head, and of one without routers."""
    found = {}
    accumulated = {"mesh.expert": 2, "mesh.fsdp": 2, "train.accumulate": 2}
    base = {"moe.bias_rate": 0.1, "train.clip_norm": 0.0, "moe.group_size": 16, "moe.capacity_factor": 4.0}
    base |= {"moe.balance_loss": 0.0}
    for name, fields, devices in (
        ("all", {}, 1),
        ("some", {"train.trainable": ("router", "head"), "train.weight_decay": 0.5}, 1),
        ("some on a mesh", {"train.trainable": ("router", "head")} | accumulated, 4),
        ("no routers", {"train.trainable": ("!router",)}, 1),
    ):
        setup, state = set_up_once(base | fields, devices)
        before = jax.device_get((state.params, state.balance_bias))
        batch = setup.place(next(setup.data.train_batches(0, 1)))
        after, metrics = setup.compile_train_step()(state, batch)
        found[name] = before, jax.device_get(after), jax.device_get(metrics), setup
    return found


def gradients(states, name):
    _, after, _, setup = states[name]
    moments = optax.tree.get(after.opt_state, "mu")
    return jax.tree.map(lambda moment: moment / (1 - setup.run.train.b1), moments)


def test_what_is_not_trained_stays_and_has_no_moments(states):
    (params, _), after, metrics, setup = states["some"]
    moved = jax.tree.map(lambda old, new: bool((old != new).any()), params, after.params)
    assert moved == setup.model.trained == trained_weights(params, ("router", "head"))
    assert len(jax.tree.leaves(optax.tree.get(after.opt_state, "mu"))) == 2
    assert metrics.finite.shape == (3,)


def test_gradients_are_those_of_training_everything(states):
    expected = pick(gradients(states, "all"), states["some"][3].model.trained)
    for name in ("some", "some on a mesh"):
        found = gradients(states, name)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7), found, expected)
        np.testing.assert_allclose(states[name][2].grad_norm, optax.global_norm(expected), rtol=1e-5)
    assert states["all"][2].grad_norm > 1.01 * states["some"][2].grad_norm


def test_balance_biases_move_with_their_routers_alone(states):
    for name, moves in (("all", True), ("some", True), ("no routers", False)):
        (_, before), after, _, _ = states[name]
        assert (
            any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (before, after.balance_bias)), strict=True))
            == moves
        )
