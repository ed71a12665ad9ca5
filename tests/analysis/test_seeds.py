import math

import numpy as np
import pytest

from moe_jax.analysis.seeds import estimate, pareto, tukey


def test_over_two_or_three_seeds_the_interval_is_their_range():
    assert estimate([1.0, 3.0]) == (2.0, 1.0, 3.0)
    assert estimate([6.0, 1.0, 2.0]) == (3.0, 1.0, 6.0)


def test_over_many_seeds_it_is_that_of_a_bootstrap_by_hand():
    values = np.random.default_rng(1).normal(size=20)
    means = np.random.default_rng(2).choice(values, size=(40_000, 20)).mean(axis=1)
    mean, low, high = estimate(values.tolist())
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.02)
    assert high - low > 0.5  # so the tolerance is small beside it


def test_an_estimate_is_the_same_every_time():
    values = np.random.default_rng(1).normal(size=9).tolist()
    assert estimate(values) == estimate(values)


def test_one_seed_has_no_interval_and_a_diverged_one_no_mean():
    one = estimate([2.0])
    assert one.mean == 2.0
    assert math.isnan(one.low) and math.isnan(one.high)
    assert all(map(math.isnan, estimate([2.0, math.nan, 1.0])))
    assert all(map(math.isnan, estimate([])))


def test_tukeys_interval_of_two_groups_is_students():
    # Variance 2 within the groups, 2 degrees of freedom: 4.3027 standard errors of sqrt(2 * (1/2 + 1/2)).
    (pair,) = tukey([[0.0, 2.0], [10.0, 12.0]])
    assert (pair.first, pair.second, pair.mean) == (0, 1, -10.0)
    assert (pair.low, pair.high) == pytest.approx((-10 - 6.0849, -10 + 6.0849), abs=1e-3)
    assert pair.supported
    (close,) = tukey([[0.0, 2.0], [1.0, 3.0]])
    assert (close.low, close.high) == pytest.approx((-1 - 6.0849, -1 + 6.0849), abs=1e-3)
    assert not close.supported


def test_tukey_tells_apart_what_is_apart_among_three():
    pairs = tukey([[1.00, 1.01, 0.99], [1.005, 1.0, 0.995], [2.0, 2.01, 1.99]])
    assert {(pair.first, pair.second): pair.supported for pair in pairs} == {
        (0, 1): False,
        (0, 2): True,
        (1, 2): True,
    }


def test_more_pairs_widen_every_interval():
    alone = tukey([[0.0, 2.0, 1.0], [4.0, 6.0, 5.0]])[0]
    among = tukey([[0.0, 2.0, 1.0], [4.0, 6.0, 5.0], *[[10.0 * i, 10.0 * i + 2, 10.0 * i + 1] for i in range(2, 6)]])[0]
    # 6 groups, 12 degrees of freedom: q = 4.75; 2 groups, 4 degrees: q = 3.93; standard error sqrt(1/3).
    assert alone.high - alone.low == pytest.approx(2 * 3.93 / math.sqrt(3), rel=0.01)
    assert among.high - among.low == pytest.approx(2 * 4.75 / math.sqrt(3), rel=0.01)


def test_the_front_holds_what_nothing_beats():
    costs = [1.0, 2.0, 2.0, 3.0, 4.0]
    losses = [5.0, 4.0, 4.5, 4.0, 1.0]
    assert pareto(costs, losses) == [True, True, False, False, True]
    assert pareto([1.0, 1.0], [2.0, 2.0]) == [True, True]  # twins
