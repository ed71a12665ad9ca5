"""The kernels of the grouped matmul, compiled for chips that are not there: no more work and memory than the rows."""

import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from moe_jax.audit.targets import devices
from moe_jax.moe.grouped_matmul import grouped_matmul

pytestmark = pytest.mark.aot
ROWS, GROUPS, SIZE, COLUMNS = 4096, 8, 1024, 2048
USEFUL = 3 * 2 * ROWS * SIZE * COLUMNS  # FLOPs of a product and its two gradients


def compiled(target, name, size=SIZE):
    """The product with both gradients, inside `shard_map` as in a training step."""
    mesh = Mesh(np.array(devices(target)[:2]), ("x",), axis_types=(AxisType.Auto,))
    rows, whole = NamedSharding(mesh, PartitionSpec("x")), NamedSharding(mesh, PartitionSpec())
    blank = lambda shape, dtype, sharding: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def both(x, w, sizes, grads):
        y, pull = jax.vjp(lambda x, w: grouped_matmul(x, w, sizes, name), x, w)
        return y, *pull(grads)

    each = PartitionSpec("x")
    sharded = jax.shard_map(
        both,
        mesh=mesh,
        in_specs=(each, PartitionSpec(), PartitionSpec(), each),
        out_specs=(each, each, PartitionSpec()),
    )
    return (
        jax.jit(sharded)
        .lower(
            blank((2 * ROWS, size), jnp.bfloat16, rows),
            blank((GROUPS, size, COLUMNS), jnp.bfloat16, whole),
            blank((GROUPS,), jnp.int32, whole),
            blank((2 * ROWS, COLUMNS), jnp.bfloat16, rows),
        )
        .compile()
    )


def temporary(program, size=SIZE):
    """Over the bytes of the rows that go in and come out."""
    return program.memory_analysis().temp_size_in_bytes / (2 * ROWS * (size + COLUMNS))


TPU_KERNELS = [
    "megablox",
    "ragged_dot",
    pytest.param("tokamax_tpu", marks=pytest.mark.skipif(
        importlib.util.find_spec("tokamax") is None, reason="pip install tokamax"
    )),
]  # fmt: skip


@pytest.mark.parametrize("name", TPU_KERNELS)
def test_on_tpu_nothing_is_dense(name):
    program = compiled("v5p:2x2x1", name)
    assert program.cost_analysis()["flops"] <= 1.1 * USEFUL
    assert temporary(program) <= 3
    assert program.as_text().count("custom-call(") >= 3


def test_megablox_takes_sizes_that_no_tile_divides():
    program = compiled("v6e:2x2", "megablox", size=1000)
    assert program.cost_analysis()["flops"] <= 1.1 * USEFUL
    assert temporary(program, 1000) <= 3


def test_on_hopper_nothing_is_dense():
    """XLA reports no FLOPs for GPU: all products are kernels, and nothing of G times the rows exists."""
    program = compiled("h100:8", "mosaic_gpu")
    text = program.as_text()
    assert len(re.findall(r"custom-call\(.*mosaic_gpu", text)) == 3 and not re.search(r" dot\(|\$gemm|cublas", text)
    assert temporary(program) <= 3


def test_what_is_dense_is_found():
    """XLA's own lowering for Hopper expands rows by groups: what the other tests have to catch."""
    assert temporary(compiled("h100:8", "ragged_dot")) > 3
