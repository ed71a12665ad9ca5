"""How sources are mixed row by row, and how often each has been seen by then."""

import math
from collections.abc import Sequence

PARTS = 100  # that Grain makes of the smallest weight; the other weights are rounded down to whole parts


def proportions(sizes: Sequence[int], weights: Sequence[float]) -> tuple[float, ...]:
    """What Grain mixes sources by: the weights, or the numbers of rows where there are none.

    Weights are scaled by a power of two, which leaves their ratios as they are, so that none is near the largest or the
    smallest float.
    """
    if not weights:
        return tuple(map(float, sizes))
    exponent = math.frexp(min(weights))[1]
    return tuple(math.ldexp(weight, -exponent) for weight in weights)


def rows_drawn(sizes: Sequence[int], weights: Sequence[float], rows: int) -> list[int]:
    """Of the first `rows` rows of the mixture, how many come from each source."""
    wanted = proportions(sizes, weights)
    parts = [int(weight * (PARTS / min(wanted))) for weight in wanted]
    drawn, left = [], sum(parts)
    for part in parts:
        others = rows * (left - part) // left
        drawn.append(rows - others)
        rows, left = others, left - part
    return drawn


def epochs(sizes: Sequence[int], weights: Sequence[float], rows: int) -> list[float]:
    """How many times each source has been gone through after so many rows of the mixture; `sizes` are its rows."""
    drawn = rows_drawn(sizes, weights, rows)
    return [count / size for count, size in zip(drawn, sizes, strict=True)]
