import math

import numpy as np
import pytest

from moe_jax.config.capacity import capacity, effective_factor, nominal_capacity, random_drop_fraction


@pytest.mark.parametrize(
    ("factor", "top_k", "group", "experts", "slots"),
    [
        (1.1, 1, 100, 10, 11),  # in floats 1.1 * 100 / 10 is more than 11
        (1.0, 1, 12, 4, 3),
        (1.0, 1, 13, 4, 4),  # a part of a slot is a slot
        (1.25, 2, 64, 8, 20),
        (0.5, 2, 8, 8, 1),
        (0.01, 1, 8, 8, 1),  # never none
        (3.0, 1, 8, 2, 8),  # an expert cannot get more than the group
        (1.5, 4, 8, 4, 8),
        (1e-9, 1, 8, 8, 1),  # written with an exponent
    ],
)
def test_capacity(factor, top_k, group, experts, slots):
    assert capacity(factor, top_k, group, experts) == slots


def test_floats_would_give_another_capacity():
    assert math.ceil(1.1 * 100 / 10) == 12


def test_nominal_and_effective():
    assert nominal_capacity(1.1, 1, 100, 10) == 11
    assert float(nominal_capacity(0.5, 1, 8, 8)) == 0.5
    assert effective_factor(11, 1, 100, 10) == 1.1
    assert effective_factor(1, 1, 8, 16) == 2.0


@pytest.mark.parametrize(
    ("slots", "top_k", "group", "experts", "fraction"),
    [
        (1, 1, 2, 2, 1 / 4),  # both tokens on one expert, in 2 of 4 cases: one of two is dropped
        (1, 2, 2, 4, 1 / 4),
        (2, 1, 3, 2, 1 / 12),  # all three on one expert, in 2 of 8 cases: one of three is dropped
        (1, 1, 3, 2, (2 * 2 + 6 * 1) / 8 / 3),
        (3, 1, 3, 2, 0.0),
    ],
)
def test_drops_by_hand(slots, top_k, group, experts, fraction):
    assert random_drop_fraction(slots, top_k, group, experts) == pytest.approx(fraction, abs=1e-12)


@pytest.mark.parametrize(("slots", "fraction"), [(8, 0.0), (6, 0.25), (2, 0.75)])
@pytest.mark.parametrize("experts", [1, 4])
def test_every_token_on_every_expert(slots, fraction, experts):
    assert random_drop_fraction(slots, experts, 8, experts) == fraction


@pytest.mark.parametrize(
    ("slots", "top_k", "group", "experts"),
    [(5, 1, 32, 8), (4, 1, 32, 8), (10, 2, 32, 8), (13, 3, 16, 4), (1, 1, 8, 16)],
)
def test_drops_against_a_simulation(slots, top_k, group, experts):
    rng = np.random.default_rng(0)
    scores = rng.random((4000, group, experts))
    chosen = np.argsort(scores, axis=-1)[..., :top_k]  # K different experts for each token, all equally likely
    load = (chosen[..., None] == np.arange(experts)).sum(axis=(1, 2))
    dropped = np.maximum(load - slots, 0).sum(axis=-1) / (group * top_k)
    error = dropped.std() / math.sqrt(len(dropped))
    assert dropped.mean() > 10 * error, "the case has to say something"
    assert random_drop_fraction(slots, top_k, group, experts) == pytest.approx(dropped.mean(), abs=4 * error)


@pytest.mark.parametrize(("group", "fraction"), [(256, "10%"), (1024, "2%"), (4096, "0.1%")])
def test_a_larger_group_drops_less(group, fraction):
    digits = len(fraction.partition(".")[2].rstrip("%"))
    assert f"{random_drop_fraction(capacity(1.25, 1, group, 64), 1, group, 64):.{digits}%}" == fraction
