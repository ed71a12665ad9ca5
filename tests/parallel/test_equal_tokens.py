"""Meshes agree where tokens of a group are equal: sequences that begin with the same token several times, and groups of
two sequences that begin alike. Without a rule for ties, rounding picks one of them, and another one on each mesh.
"""

import functools

import jax
import numpy as np
import pytest
from invariance import assert_equal_to, make_batch, make_run, name, train

FIELDS = {
    "expert_choice": {},
    "gshard": {"moe.drop_order": "priority", "moe.second_expert": "always", "moe.expert_dropout": 0.0},
}
SAME = {"model.num_layers": 2, "moe.jitter": 0.0, "moe.group_size": 32, "moe.capacity_factor": 0.6}
SAME |= {"train.accumulate": 1}


def equal_tokens():
    """Each sequence begins with one token three times, and each second one like the one before it."""
    batch = make_batch()
    ids = np.array(batch.ids)
    ids[:, 1] = ids[:, 2] = ids[:, 0]
    ids[1::2, :6] = ids[::2, :6]
    return batch._replace(ids=ids, documents=np.ones_like(batch.documents))


@functools.cache
def result(router, dtype, mesh):
    run = make_run(dict(mesh), router, "capacity", dtype, **SAME, **FIELDS[router])
    first, last = train(run, router, 1 if dtype == "float32" else 3, equal_tokens())
    return first if dtype == "float32" else (first, last)


@pytest.mark.parametrize(
    ("router", "dtype", "mesh"),
    [
        ("expert_choice", "float32", {"tensor": 2}),
        ("expert_choice", "float64", {"data": 8}),
        ("gshard", "float64", {"tensor": 2}),
        pytest.param("expert_choice", "float32", {"data": 8}, marks=pytest.mark.slow),
        pytest.param("expert_choice", "float64", {"tensor": 2}, marks=pytest.mark.slow),
        pytest.param("gshard", "float64", {"data": 8}, marks=pytest.mark.slow),
        *(
            pytest.param(router, "float64", mesh, marks=pytest.mark.slow)
            for router in FIELDS
            for mesh in ({"expert": 8}, {"fsdp": 2, "expert": 2, "tensor": 2})
        ),
    ],
    ids=lambda value: name(value) if isinstance(value, dict) else value,
)
def test_equal_tokens_are_ordered_alike_on_every_mesh(router, dtype, mesh):
    with jax.enable_x64(dtype == "float64"):
        expected = result(router, dtype, ())
        assert_equal_to(expected, result(router, dtype, tuple(mesh.items())), 2e-5 if dtype == "float32" else 1e-10)
