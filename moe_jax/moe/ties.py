"""Order by score, where scores that are equal but for rounding count as equal and the earlier token goes first.

Two tokens of a group often have equal scores: a sequence begins with the same token twice, or several documents of the
group begin alike. Their scores are sums over attention and matmuls, whose order depends on the mesh and on the token's
place in the batch, so that in floating point they differ in the last bits, in one way on one mesh and in the other way
on another. To compare them exactly would let rounding decide, and give each mesh a result of its own.

What is guaranteed: with e the rounding errors of scores, tokens that are equal in exact arithmetic are ordered by
position on every mesh, if e is below `tolerance`. What is not: scores that are not equal are still told apart by
comparison with a threshold, and where one lies within e of it, meshes may differ. That is as rare as e is small,
whereas equal tokens were certain to meet it. In bfloat16 activations the errors are above the tolerance.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

ROUNDINGS = 256  # last bits by which equal scores may differ: 3e-5 in float32, 6e-14 in float64


def tolerance(score: Float[Array, "..."]) -> Float[Array, "..."]:
    """How far from a score those lie that count as equal to it."""
    size = jnp.where(jnp.isfinite(score), jnp.abs(score), 0)
    return ROUNDINGS * jnp.finfo(score.dtype).eps * (1 + size)


def best(score: Float[Array, "G T E"], count: int) -> Bool[Array, "G T E"]:
    """Which `count` tokens of each group have the highest scores, in each column.

    All that are above the lowest of them by more than the tolerance; of those within it, above or below, the first. So
    the tolerance is also the most by which a token that is left out can be better than one that is taken.
    """
    lowest = -jnp.sort(-score, axis=1)[:, count - 1 : count]
    margin = tolerance(lowest)
    above = score > lowest + margin
    equal = ~above & ~(score < lowest - margin)  # written so that NaN counts as equal: there are `count` in any case
    left = count - jnp.sum(above, axis=1, keepdims=True)
    return above | (equal & (jnp.cumsum(equal, axis=1) <= left))


def best_first(score: Float[Array, "T"]) -> Int[Array, "T"]:
    """The tokens from the highest score to the lowest. Two count as equal if a chain of scores leads from one to the
    other in steps below the tolerance.
    """
    by_score = jnp.argsort(-score, stable=True)
    ranked = score[by_score]
    apart = ranked[:-1] - ranked[1:] > tolerance(ranked[1:])
    rank = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(apart, dtype=jnp.int32)])
    return by_score[jnp.lexsort((by_score, rank))]
