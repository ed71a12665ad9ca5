import math

import numpy as np
import pytest
from scipy import stats

from moe_jax.report.seeds import blocked_tukey, estimate, pareto, tukey


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


def losses_of(num_points, num_seeds):
    """Points 0.05 apart, with noise of seeds ten times that of cells."""
    rng = np.random.default_rng(num_points * num_seeds)
    seeds = rng.normal(scale=0.2, size=num_seeds)
    return 0.05 * np.arange(num_points)[:, None] + seeds + rng.normal(scale=0.02, size=(num_points, num_seeds))


@pytest.mark.parametrize("num_seeds", [2, 3, 8])
def test_two_points_blocked_by_seed_are_a_paired_t_test(num_seeds):
    first, second = losses_of(2, num_seeds)
    (pair,) = blocked_tukey(np.stack([first, second]))
    paired = stats.ttest_rel(first, second)
    assert pair.mean == pytest.approx((first - second).mean())
    assert pair.p_value == pytest.approx(paired.pvalue, rel=1e-9)
    assert (pair.low, pair.high) == pytest.approx(tuple(paired.confidence_interval(0.95)), rel=1e-9)


@pytest.mark.parametrize(("num_points", "num_seeds"), [(3, 2), (3, 3), (5, 4)])
def test_more_points_blocked_by_seed_are_a_two_way_anova_by_least_squares(num_points, num_seeds):
    losses = losses_of(num_points, num_seeds)
    point, seed = (index.ravel() for index in np.indices(losses.shape))
    design = np.concatenate([np.eye(num_points)[point], np.eye(num_seeds)[seed][:, 1:]], axis=1)
    effects, (residual,), rank, _ = np.linalg.lstsq(design, losses.ravel())
    degrees = losses.size - rank
    # For a range of P means of S values each: standard error of one mean, without the seeds' part.
    error = np.sqrt(residual / degrees / num_seeds)
    pairs = blocked_tukey(losses)
    assert [(pair.first, pair.second) for pair in pairs] == list(zip(*np.triu_indices(num_points, 1), strict=True))
    for pair in pairs:
        mean = effects[pair.first] - effects[pair.second]
        half = error * stats.studentized_range.ppf(0.95, num_points, degrees)
        assert (pair.mean, pair.low, pair.high) == pytest.approx((mean, mean - half, mean + half))
        assert pair.p_value == pytest.approx(stats.studentized_range.sf(abs(mean) / error, num_points, degrees))
        assert pair.supported == (not pair.low <= 0 <= pair.high)


def test_pairing_by_seed_decides_where_seeds_scatter_more_than_the_points_differ():
    losses = [[2.0, 2.1, 2.2], [1.97, 2.08, 2.18]]
    assert not tukey(losses)[0].supported
    (pair,) = blocked_tukey(np.array(losses))
    # +0.03, +0.02 and +0.02 by seed: standard error 1/300, 2 degrees of freedom, 4.3027 standard errors.
    assert (pair.low, pair.high) == pytest.approx((0.07 / 3 - 4.3027 / 300, 0.07 / 3 + 4.3027 / 300), abs=1e-6)
    assert pair.supported


def test_the_order_of_points_and_seeds_does_not_matter():
    losses = losses_of(4, 3)
    by_pair = {(pair.first, pair.second): pair for pair in blocked_tukey(losses)}
    points, seeds = [2, 0, 3, 1], [1, 2, 0]
    for pair in blocked_tukey(losses[points][:, seeds]):
        first, second = points[pair.first], points[pair.second]
        if (first, second) in by_pair:
            same = by_pair[first, second]
            expected = (same.mean, same.low, same.high, same.p_value)
        else:
            same = by_pair[second, first]
            expected = (-same.mean, -same.high, -same.low, same.p_value)
        assert pair[2:] == pytest.approx(expected)


def test_what_does_not_scatter_is_not_tested():
    assert tukey([[1.0, 1.0], [2.0, 2.0, 2.0]]) == []
    assert blocked_tukey(np.array([[1.7, 1.9], [1.7, 1.9]])) == []  # identical runs
    assert blocked_tukey(np.array([[1.7, 1.9, 2.3], [1.8, 2.0, 2.4], [1.1, 1.3, 1.7]])) == []  # but for rounding
    same, *others = blocked_tukey(np.array([[1.7, 1.9], [1.7, 1.9], [3.0, 2.9]]))
    assert (same.mean, same.p_value) == (0.0, 1.0)
    assert [pair.mean for pair in others] == pytest.approx([-1.15, -1.15])
    [pair] = blocked_tukey(np.array([[2.0, 2.0], [2.0, 2.000001]]))  # little, but more than rounding
    assert pair.low < pair.mean < 0 < pair.high


def test_the_front_holds_what_nothing_beats():
    costs = [1.0, 2.0, 2.0, 3.0, 4.0]
    losses = [5.0, 4.0, 4.5, 4.0, 1.0]
    assert pareto(costs, losses) == [True, True, False, False, True]
    assert pareto([1.0, 1.0], [2.0, 2.0]) == [True, True]  # twins
