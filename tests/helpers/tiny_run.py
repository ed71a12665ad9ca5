"""A tiny run on a few kB of text: fixtures for all tests that train or write a run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.config import default_config
from moe_jax.resolve import resolve
from moe_jax.train.setup import set_up
from moe_jax.train.state import TrainState, init_state
from moe_jax.train.trainable import pick

WORDS = ("the", "router", "sends", "each", "token", "to", "one", "expert", "and", "some", "are", "dropped")

TINY = {
    "model.num_layers": 1,
    "model.d_model": 16,
    "model.d_ff": 32,
    "model.num_heads": 2,
    "model.num_kv_heads": 2,
    "moe.num_experts": 4,
    "moe.d_ff": 32,
    "moe.group_size": 16,
    "data.sequence_length": 16,
    "data.batch_size": 8,
    "data.holdout_fraction": 0.2,
    "train.steps": 6,
    "train.schedule": "constant",
    "train.warmup_steps": 0,
    "log.every": 2,
    "eval.every": 3,
    "eval.batches": 0,
    "checkpoint.every": 4,
}

SHAPE_OF_MOE = ("moe.num_experts", "moe.d_ff", "moe.num_experts_by_layer")


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A folder with two domains of ten documents each."""
    folder = tmp_path_factory.mktemp("text")
    random = np.random.RandomState(0)
    for domain in ("prose", "numbers"):
        (folder / domain).mkdir()
        for i in range(10):
            words = random.choice(WORDS, 60) if domain == "prose" else map(str, random.randint(0, 1000, 40))
            (folder / domain / f"{i}.txt").write_text(" ".join(words))
    return folder


@pytest.fixture(scope="session")
def tiny(text, tmp_path_factory):
    """Fields of the tiny run, flattened."""
    return TINY | {"data.source": f"text:{text}", "data.cache_dir": str(tmp_path_factory.mktemp("cache"))}


@pytest.fixture(scope="session")
def make_run(tiny):
    """make_run({"moe.num_experts": 2}) is the tiny run with other fields, resolved for one device or for `devices`."""

    def make(fields=None, devices=1):
        config = default_config()
        config.update_from_flattened_dict(tiny | (fields or {}))
        return resolve(config, devices)

    return make


@pytest.fixture(scope="session")
def set_up_once(make_run):
    """set_up_once(fields, devices) -> (Setup, initial TrainState); equal arguments share one setup.

    Equal models start from equal weights, drawn once. The state is a copy, since a training step donates it.
    """
    setups, weights = {}, {}

    def drawn(fields):
        shape = {name: value for name, value in fields.items() if name.startswith("model.") or name in SHAPE_OF_MOE}
        key = json.dumps(shape, sort_keys=True)
        if key not in weights:
            setup = set_up(make_run(shape))
            weights[key] = init_state(setup.task, setup.shapes, setup.optimizer).params
        return jax.tree.map(jnp.copy, weights[key])

    def call(fields=None, devices=1):
        key = json.dumps([fields, devices], sort_keys=True)
        if key not in setups:
            setup = set_up(make_run(fields, devices))
            setups[key] = setup, jax.jit(setup.optimizer.init, out_shardings=shardings(setup.shapes.opt_state))
        setup, init_optimizer = setups[key]
        start = jnp.zeros((), jnp.int32), jnp.uint32(setup.run.seed), drawn(fields or {})
        step, seed, params = jax.device_put(start, shardings(setup.shapes[:3]))
        biases, window = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape), (setup.shapes.balance_bias, setup.shapes.window)
        )
        return setup, TrainState(step, seed, params, biases, init_optimizer(pick(params, setup.model.trained)), window)

    return call


def shardings(shapes):
    return jax.tree.map(lambda leaf: leaf.sharding, shapes)
