import itertools

import jax.numpy as jnp
import pytest

from moe_jax.benchmarks.timing import median_ratio, paired_ratio, paired_times, turns

NAMES = ["a", "b", "c", "d", "e"]


def test_every_repeat_has_all_candidates_in_an_order_of_its_own_that_the_seed_fixes():
    orders = turns(NAMES, repeats=20, seed=1)
    assert all(sorted(order) == NAMES for order in orders)
    assert len({tuple(order) for order in orders}) > 10
    assert orders == turns(NAMES, repeats=20, seed=1)
    assert orders != turns(NAMES, repeats=20, seed=2)


def test_no_candidate_always_follows_the_same_one():
    before = {b for order in turns(NAMES, repeats=50) for a, b in itertools.pairwise(order) if a == "a"}
    assert before == set(NAMES) - {"a"}


def test_candidates_are_called_in_these_turns_after_one_call_each_to_compile():
    calls = []
    candidates = {name: lambda name=name: calls.append(name) or jnp.zeros(()) for name in NAMES}
    times = paired_times(candidates, repeats=3, seed=7)
    assert calls == [*NAMES, *itertools.chain(*turns(NAMES, repeats=3, seed=7))]
    assert {name: len(seconds) for name, seconds in times.items()} == dict.fromkeys(NAMES, 3)


def test_a_ratio_pairs_the_times_of_one_repeat():
    times = {"reference": [1.0, 2.0, 4.0, 8.0, 16.0], "other": [1.0, 4.0, 12.0, 32.0, 80.0]}
    ratio = paired_ratio(times, "other", "reference")
    assert ratio == pytest.approx((3.0, 2.0, 4.0))
    assert str(ratio) == "3.00 (2.00 to 4.00)"
    assert median_ratio(times, "other", "reference") == 3.0


def test_one_repeat_has_no_spread():
    assert paired_ratio({"a": [3.0], "b": [2.0]}, "a", "b") == (1.5, 1.5, 1.5)
