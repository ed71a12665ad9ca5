"""Draws against distributions that are worked out by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.config.rules import ConfigError
from moe_jax.inference.sampling import GREEDY, Sampling, Settings, draw

PROBABILITIES = np.array([0.05, 0.4, 0.1, 0.3, 0.15])
LOGITS = np.log(PROBABILITIES) + 3.0
DRAWS = 20_000
CASES = {
    "all": (Sampling(1.0), PROBABILITIES),
    "temperature": (Sampling(0.5), PROBABILITIES**2),
    "top_k": (Sampling(1.0, top_k=2), [0, 0.4, 0, 0.3, 0]),
    "top_k of all": (Sampling(1.0, top_k=9), PROBABILITIES),
    "top_p just reached": (Sampling(1.0, top_p=0.69), [0, 0.4, 0, 0.3, 0]),
    "top_p of what top_k leaves": (Sampling(1.0, top_k=2, top_p=0.57), [0, 1, 0, 0, 0]),
    "top_p of the first alone": (Sampling(1.0, top_p=1e-6), [0, 1, 0, 0, 0]),
    "min_p": (Sampling(1.0, min_p=0.3), [0, 0.4, 0, 0.3, 0.15]),
    "min_p of all": (Sampling(1.0, min_p=1.0), [0, 1, 0, 0, 0]),
    "all of them": (Sampling(2.0, top_k=4, top_p=0.9, min_p=0.6), [0, 0.4**0.5, 0, 0.3**0.5, 0.15**0.5]),
}


@pytest.mark.parametrize("case", CASES)
def test_frequencies(case):
    sampling, expected = CASES[case]
    settings = Settings.of([dataclasses.replace(sampling, seed=5)] * DRAWS)
    logits = jnp.broadcast_to(jnp.asarray(LOGITS, jnp.float32), (DRAWS, 5))
    drawn = jax.jit(draw, static_argnums=3)(logits, settings, jnp.arange(DRAWS), False)
    expected = np.asarray(expected) / np.sum(expected)
    found = np.bincount(np.asarray(drawn.token), minlength=5) / DRAWS
    np.testing.assert_allclose(found, expected, atol=4 * np.sqrt(0.25 / DRAWS))
    assert np.all(found[expected == 0] == 0)
    np.testing.assert_allclose(drawn.log_probability, np.log(PROBABILITIES)[drawn.token], rtol=1e-5)


def test_a_draw_is_that_of_its_seed_and_position():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(4, 50)), jnp.float32)
    samplings = [Sampling(1.0, seed=1), Sampling(1.0, seed=2), GREEDY, Sampling(0.7, top_k=5, seed=1)]
    positions = jnp.array([3, 3, 3, 9])
    whole = draw(logits, Settings.of(samplings), positions, False)
    for row in range(4):
        one = draw(logits[row : row + 1], Settings.of(samplings[row : row + 1]), positions[row : row + 1], False)
        assert one.token[0] == whole.token[row]
    assert whole.token[2] == np.argmax(logits[2])
    same = jnp.broadcast_to(logits[:1], (200, 50))
    by_position = draw(same, Settings.of([Sampling(1.0, seed=1)] * 200), jnp.arange(200), False).token
    by_seed = draw(same, Settings.of([Sampling(1.0, seed=seed) for seed in range(200)]), jnp.zeros(200, int), False)
    assert len(set(map(int, by_position))) > 20 and len(set(map(int, by_seed.token))) > 20


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (Sampling(temperature=-0.1), "--temperature=-0.1: give from 0 to 1e30"),
        (Sampling(temperature=float("nan")), "--temperature=nan: give from 0 to 1e30"),
        (Sampling(temperature=float("inf")), "--temperature=inf: give from 0 to 1e30"),
        (Sampling(top_k=-1), "--top_k=-1: give 0 or more"),
        (Sampling(top_p=0.0), "--top_p=0.0: give more than 0, at most 1"),
        (Sampling(top_p=1.1), "--top_p=1.1: give more than 0, at most 1"),
        (Sampling(min_p=-0.1), "--min_p=-0.1: give from 0 to 1"),
        (Sampling(seed=-1), "--seed=-1: give from 0 to"),
    ],
)
def test_settings_that_no_draw_can_follow(sampling, message):
    with pytest.raises(ConfigError, match=message):
        sampling.check()
