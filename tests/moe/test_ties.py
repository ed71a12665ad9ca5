"""Equal but for rounding is equal: the earlier token goes first, and nothing else changes the order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.moe.ties import ROUNDINGS, best, best_first

ROUNDING = 4 * np.finfo(np.float32).eps


def taken(score, count):
    """The tokens of one group that one expert takes."""
    chosen = best(jnp.asarray(score, jnp.float32)[None, :, None], count)[0, :, 0]
    return np.flatnonzero(chosen).tolist()


@pytest.mark.parametrize("sign", [1, -1], ids=["later is larger", "earlier is larger"])
def test_rounding_does_not_choose(sign):
    score = [0.1, -2.0, -2.0 + sign * ROUNDING, 0.5, -2.0 + 2 * sign * ROUNDING]
    assert taken(score, 3) == [0, 1, 3]
    assert taken(score, 4) == [0, 1, 2, 3]
    assert best_first(jnp.asarray(score, jnp.float32)).tolist() == [3, 0, 1, 2, 4]


def test_a_difference_above_the_tolerance_counts():
    apart = 4 * ROUNDINGS * np.finfo(np.float32).eps
    assert taken([1.0, 1.0 + apart, 0.0], 1) == [1]
    assert best_first(jnp.asarray([1.0, 1.0 + apart, 0.0], jnp.float32)).tolist() == [1, 0, 2]


def test_the_tolerance_grows_with_the_scores():
    """Their rounding errors do."""
    assert taken([-1000.0, -1000.0 + 1e-3, -2000.0], 1) == [0]
    assert taken([0.0, 1e-3, -2000.0], 1) == [1]


@pytest.mark.parametrize("count", [1, 3, 7])
def test_scores_apart_are_ordered_as_by_sorting(count):
    score = np.random.default_rng(0).permutation(7).astype(np.float32)
    assert taken(score, count) == sorted(np.argsort(-score)[:count].tolist())
    assert best_first(jnp.asarray(score)).tolist() == np.argsort(-score).tolist()


@pytest.mark.parametrize("odd", [-np.inf, np.nan], ids=str)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_so_many_are_taken_whatever_the_scores_are(odd, count):
    assert len(taken([odd, 1.0, odd, 2.0], count)) == count
    assert len(taken([odd] * 4, count)) == count


def test_padding_comes_last():
    assert taken([-np.inf, -300.0, -np.inf, -400.0], 2) == [1, 3]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_noise_of_many_equal_tokens_is_ordered_by_position(dtype):
    """Fifty tokens, ten different scores, each with an error of its own: two draws of errors give the same order."""
    with jax.enable_x64(dtype == "float64"):
        rng = np.random.default_rng(0)
        score = rng.normal(size=10)[rng.integers(0, 10, 50)]
        eps = np.finfo(dtype).eps
        noisy = [jnp.asarray(score + 8 * eps * rng.uniform(-1, 1, 50), dtype) for _ in range(2)]
        by_rule = np.lexsort((np.arange(50), -score))
        for one in noisy:
            np.testing.assert_array_equal(best_first(one), by_rule)
            for count in (5, 20, 40):
                chosen = np.flatnonzero(best(one[None, :, None], count)[0, :, 0])
                np.testing.assert_array_equal(chosen, np.sort(by_rule[:count]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_the_documentation_says_of_the_tolerance(dtype):
    """docs: scores closer than 3e-5 in float32, 6e-14 in float64, are equal; twice that far apart they are not."""
    with jax.enable_x64(dtype == "float64"):
        said = {"float32": 3e-5, "float64": 6e-14}[dtype]
        score = lambda apart: jnp.asarray([[[0.0], [apart], [-9.0]]], dtype)
        assert bool(best(score(0.8 * said), 1)[0, 0, 0])
        assert bool(best(score(2.0 * said), 1)[0, 1, 0])
