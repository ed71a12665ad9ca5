"""The balance biases of all layers after a step."""

from collections.abc import Sequence

import jax
from jaxtyping import Array, Int, PyTree

from moe_jax.config.layers import segments
from moe_jax.config.schema import RunConfig
from moe_jax.models.block import by_place
from moe_jax.moe.bias_updates import BIAS_UPDATES, updated_bias
from moe_jax.moe.sums import Sums


def moved_biases(run: RunConfig, biases: PyTree, sums: Sequence[Sums], step: Int[Array, ""]) -> PyTree:
    """The biases after a step with these sums over the whole batch, by segment with MoE layers.

    `biases` is a nested dict: one array for each MoE layer of a segment's pattern that has a bias, stacked over the
    segment's repeats.
    """
    if not jax.tree.leaves(biases):
        return biases
    settings = {index: spec.moe for index, spec in enumerate(segments(run)) if spec.moe is not None}
    sums_of = dict(zip(settings, sums, strict=True))
    update = BIAS_UPDATES[run.moe.bias_update]
    moved = {}
    for index, part in biases["segments"].items():
        leaves, tree = jax.tree.flatten(part)
        evidence = by_place(sums_of[index][update.evidence.__name__], len(leaves))
        of_layers = zip(leaves, evidence, strict=True)
        new = [updated_bias(bias, seen, step, settings[index], update) for bias, seen in of_layers]
        moved[index] = jax.tree.unflatten(tree, new)
    return {"segments": moved}
