"""The sizes that a mesh has to divide are those of the real weights."""

import pytest
from configurations import run_of
from flax import nnx

from moe_jax.models.checks import sizes
from moe_jax.parallel.sharding import RULES
from moe_jax.tasks.registry import task_of

# No two of these sizes have a factor in common, but for 2, so that none passes for another.
WIDTHS = {
    "model.d_model": 2 * 3, "model.num_heads": 5, "model.num_kv_heads": 5, "model.head_dim": 2 * 7, "model.d_ff": 11,
    "model.vocab_size": 263, "data.sequence_length": 8, "data.batch_size": 2,
}  # fmt: skip
EXPERTS = {**WIDTHS, "moe.num_experts": 13, "moe.d_ff": 17, "moe.group_size": 8}
MODELS = {
    "dense": WIDTHS,
    "tied": {**WIDTHS, "model.tie_embeddings": True, "model.activation": "swiglu"},
    "grouped queries": {**WIDTHS, "model.num_heads": 10},
    "shared experts": {**EXPERTS, "moe.every": 2, "moe.num_shared_experts": 2},
    "shared experts of their own size": {**EXPERTS, "moe.num_shared_experts": 2, "moe.shared_d_ff": 19},
    "by layer": {**EXPERTS, "moe.num_experts_by_layer": (3, 13), "moe.activation": "geglu"},
    "noisy": {**EXPERTS, "moe.router": "noisy_top_k", "moe.top_k": 2},
    "soft": {**EXPERTS, "moe.router": "soft", "moe.balance_loss": 0.0, "moe.eval_capacity_factor": 1.25},
}


def cuts(axis):
    return RULES[axis].split + RULES[axis].stored


def cut_dimensions(run):
    """(where, axis, size) of every dimension of every weight that some mesh axis cuts."""
    model = nnx.eval_shape(lambda: task_of(run).build(nnx.Rngs(params=0)))
    for path, weight in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        for axis, size in zip(weight.axes, weight.shape[len(weight.shape) - len(weight.axes) :], strict=True):
            if cuts(axis):
                yield ".".join(map(str, path)), axis, size


@pytest.mark.parametrize("fields", MODELS.values(), ids=MODELS)
def test_every_dimension_that_a_mesh_cuts_is_among_the_declared_sizes(fields):
    """It is a multiple of a size whose rule has at least the same mesh axes: what divides that size divides it."""
    run = run_of(fields)
    declared = [size for size in sizes(run) if size.value]
    found = list(cut_dimensions(run))
    assert {axis for _, axis, _ in found} >= {"embed", "heads", "heads_in", "vocab_in"}
    undeclared = [
        (where, axis, size)
        for where, axis, size in found
        if not any(set(cuts(axis)) <= set(cuts(one.axis)) and size % one.value == 0 for one in declared)
    ]
    assert not undeclared
