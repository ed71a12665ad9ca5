"""Gradients of a NumPy function without any calculus."""

from collections.abc import Callable, Mapping

import numpy as np


def slopes(function: Callable[[np.ndarray], float], array: np.ndarray, step=1e-6) -> np.ndarray:
    """Central differences of `function(array)` in every entry."""
    result = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        ends = []
        for sign in (1, -1):
            moved = array.copy()
            moved[index] += sign * step
            ends.append(function(moved))
        result[index] = (ends[0] - ends[1]) / (2 * step)
    return result


def gradients(function: Callable[..., float], values: Mapping[str, np.ndarray], step=1e-6) -> dict[str, np.ndarray]:
    """Central differences of `function(**values)` in every entry of every array."""
    by_name = lambda name: lambda moved: function(**{**values, name: moved})
    return {name: slopes(by_name(name), array, step) for name, array in values.items()}
