"""Which weights a run trains: `train.trainable` names them by patterns of their paths, the others stay as they are."""

from collections.abc import Sequence
from typing import Any

import jax
from jaxtyping import PyTree

from moe_jax.config.rules import ConfigError
from moe_jax.config.schema import RunConfig
from moe_jax.config.weights import matches, present


def trained_weights(weights: PyTree, patterns: Sequence[str]) -> PyTree:
    """Whether each weight is trained, in nested dicts like those of `weights`.

    It is if one of the `patterns` matches its path ("segments/0/blocks/1/attention/q"), or if there are none but such
    as begin with "!"; and if no pattern behind a "!" matches. Names of `config.weights.GROUPS` stand for patterns.
    Raises ConfigError for a pattern that matches nothing, and where nothing would be trained.
    """
    leaves = jax.tree_util.tree_leaves_with_path(weights)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    matched = {pattern: matches(paths, pattern.removeprefix("!")) for pattern in patterns}
    for pattern, found in matched.items():
        if not any(found):
            raise ConfigError(
                f"train.trainable: {pattern!r} matches no weight of this model: give some of "
                f"{', '.join(present(paths))}, or a pattern of paths like {paths[len(paths) // 2]}"
            )
    allowed = [found for pattern, found in matched.items() if not pattern.startswith("!")]
    refused = [found for pattern, found in matched.items() if pattern.startswith("!")]
    trained = [
        (not allowed or any(found[i] for found in allowed)) and not any(found[i] for found in refused)
        for i in range(len(paths))
    ]
    if not any(trained):
        raise ConfigError(f"train.trainable={tuple(patterns)} leaves no weight to be trained: leave out a '!' pattern")
    return jax.tree.unflatten(jax.tree.structure(weights), trained)


def patterns_of(run: RunConfig) -> tuple[str, ...]:
    """`train.trainable`, or of a run with low-rank adapters these and only what is named beside them.

    Patterns with "!" alone say what of everything is left out, and with adapters there is nothing that they could.
    """
    if not run.lora.rank:
        return run.train.trainable
    named = any(not pattern.startswith("!") for pattern in run.train.trainable)
    return ("lora", *run.train.trainable) if named else ("lora",)


def pick(tree: PyTree, trained: PyTree) -> PyTree:
    """The tree without what is not trained: there it has None, which to JAX is no leaf."""
    return jax.tree.map(lambda leaf, is_trained: leaf if is_trained else None, tree, trained)


def put(picked: PyTree, tree: PyTree) -> PyTree:
    """The whole tree, with what `pick` kept in its place."""
    choose: Any = lambda new, old: old if new is None else new
    return jax.tree.map(choose, picked, tree, is_leaf=lambda node: node is None)


def trains_routers(trained: PyTree) -> bool:
    """Whether any router's weights are trained, or there are none that could be. Balance biases move only then."""
    leaves = jax.tree_util.tree_leaves_with_path(trained)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    of_routers = [
        is_trained for (_, is_trained), matches in zip(leaves, matches(paths, "router"), strict=True) if matches
    ]
    return any(of_routers) or not of_routers
