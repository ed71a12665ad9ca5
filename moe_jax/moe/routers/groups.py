"""Group-limited selection: a token's experts come from few groups, so that it travels to few devices or nodes."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float


def best_groups(scores: Float[Array, "G T E"], groups: int, top_groups: int, best: int) -> Bool[Array, "G T E"]:
    """Which experts are in the `top_groups` of each token's `groups` equal runs of consecutive experts.

    A group counts by the sum of its `best` highest scores: 1 in DeepSeek-V2 (section 2.2.2), 2 in DeepSeek-V3 (section
    2.1.2, node-limited routing). Of equal groups the first wins.
    """
    by_group = scores.reshape(*scores.shape[:2], groups, -1)
    group_score = jnp.sum(lax.top_k(by_group, best)[0], axis=-1)
    _, chosen = lax.top_k(group_score, top_groups)
    allowed = jnp.any(jax.nn.one_hot(chosen, groups, dtype=bool), axis=-2)
    return jnp.repeat(allowed, by_group.shape[-1], axis=-1)
