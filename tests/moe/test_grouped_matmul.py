"""The grouped matmul against a loop over groups: values and both gradients, whatever the sizes."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from moe_jax.config.rules import ConfigError
from moe_jax.config.schema import MeshConfig
from moe_jax.moe.grouped_matmul import grouped_matmul, implementation_of
from moe_jax.moe.grouped_matmul.padded import BLOCK, BLOCK_OVERHEAD, batches, work
from moe_jax.parallel.mesh import make_mesh

ROWS, SIZE, COLUMNS = 600, 24, 40
SIZES = {
    "balanced": (120, 120, 120, 120, 120),
    "empty groups": (0, 200, 0, 400, 0),
    "all in the first": (600, 0, 0, 0, 0),
    "all in the last": (0, 0, 0, 0, 600),
    "fewer than the buffer": (1, 130, 7, 59, 3),
    "no tile divides": (127, 129, 255, 1, 88),
    "none": (0, 0, 0, 0, 0),
    "one row": (0, 0, 1, 0, 0),
}
RUNS_HERE = ("padded", "ragged_dot", "megablox_interpreted")


def by_loop(rows, weights, sizes, grads):
    """The product and both gradients in NumPy, one group after another."""
    y, d_rows, d_weights = np.zeros((len(rows), weights.shape[2])), np.zeros_like(rows), np.zeros_like(weights)
    start = 0
    for group, size in enumerate(sizes):
        own = slice(start, start + size)
        y[own] = rows[own] @ weights[group]
        d_rows[own] = grads[own] @ weights[group].T
        d_weights[group] = rows[own].T @ grads[own]
        start += size
    return y, d_rows, d_weights


@functools.cache
def operands(num_groups=5, num_rows=ROWS, size=SIZE, columns=COLUMNS):
    rng = np.random.default_rng(0)
    return tuple(
        rng.normal(size=shape) for shape in ((num_rows, size), (num_groups, size, columns), (num_rows, columns))
    )


@functools.cache
def compiled(implementation):
    """One compilation for all sizes."""

    def product(rows, weights, sizes, grads):
        y, pull = jax.vjp(lambda r, w: grouped_matmul(r, w, sizes, implementation), rows, weights)
        return y, *pull(grads)

    return jax.jit(product)


@pytest.mark.parametrize("implementation", RUNS_HERE)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_values_and_both_gradients_are_those_of_a_loop_over_groups(implementation, sizes):
    rows, weights, grads = operands()
    dtype = np.float32 if implementation == "megablox_interpreted" else np.float64
    with jax.enable_x64(dtype == np.float64):
        cast = lambda a: jnp.asarray(a, dtype)
        got = compiled(implementation)(cast(rows), cast(weights), jnp.array(sizes, jnp.int32), cast(grads))
    for name, ours, theirs in zip(("y", "d_rows", "d_weights"), got, by_loop(rows, weights, sizes, grads), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12 if dtype == np.float64 else 1e-4, err_msg=name)


@pytest.mark.parametrize("skew", [0.0, 1.0, 2.0, 8.0])
def test_padded_takes_any_load_of_groups_larger_than_its_blocks(skew):
    num_groups, num_rows = 7, 5 * BLOCK + 13
    rows, weights, grads = operands(num_groups, num_rows)
    shares = np.random.default_rng(int(skew)).permutation(np.arange(1, num_groups + 1) ** -skew)
    sizes = np.floor(shares / shares.sum() * (num_rows - 5)).astype(np.int32)
    with jax.enable_x64(True):
        got = compiled("padded")(*map(jnp.asarray, (rows, weights, sizes, grads)))
    for ours, theirs in zip(got, by_loop(rows, weights, sizes, grads), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-11)


def test_padded_multiplies_little_more_than_the_rows():
    """Balanced groups cost nothing beside them, and the most skewed at most two blocks' worth more a group."""
    num_rows, num_groups = 8192, 64
    assert max(batches(num_rows, num_groups)).capacity <= 1.5 * num_rows / num_groups
    balanced = jnp.full(num_groups, num_rows // num_groups)
    assert min(work(balanced, num_rows)) == num_rows
    one = jnp.zeros(num_groups, jnp.int32).at[5].set(num_rows)
    most = num_rows * (1 + BLOCK_OVERHEAD / BLOCK) + 0.5 * num_rows
    assert min(work(one, num_rows)) <= most


def useful(num_rows, size, columns):
    """FLOPs of a product and its two gradients."""
    return 3 * 2 * num_rows * size * columns


def cost(implementation, num_groups=8, num_rows=512, size=128, columns=256):
    """FLOPs and temporary bytes of the compiled product with both gradients, over the useful and those of the rows."""
    shapes = [(num_rows, size), (num_groups, size, columns), (num_groups,), (num_rows, columns)]
    dtypes = [jnp.float32, jnp.float32, jnp.int32, jnp.float32]
    blanks = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    program = compiled(implementation).lower(*blanks).compile()
    flops = program.cost_analysis()["flops"] / useful(num_rows, size, columns)
    memory = program.memory_analysis().temp_size_in_bytes / (4 * num_rows * (size + columns))
    return flops, memory


def test_the_compiled_program_is_not_dense():
    """XLA counts the branch with the largest batch, 1.5 times the mean, of each conditional, and one pass through each
    loop over blocks, here of 256 rows at most; a dense expansion has 8 times the useful FLOPs.
    """
    flops, memory = cost("padded")
    assert flops <= 1.5 + 0.5 + 0.1
    assert memory <= 3
    dense_flops, _ = cost("ragged_dot")  # as XLA for CPU does it: what this test has to catch
    assert dense_flops > 4


def test_results_vary_over_the_mesh_as_the_operands_do():
    """Kernels cannot say so themselves; weights that are the same everywhere get the sum of all gradients."""
    mesh = make_mesh(MeshConfig(data=2, expert=2))
    rows, weights, grads = (jnp.asarray(a, jnp.float32) for a in operands())
    sizes = jnp.array(SIZES["no tile divides"], jnp.int32)
    each = PartitionSpec(("data", "expert"))

    @jax.jit
    @jax.shard_map(mesh=mesh, in_specs=(each, PartitionSpec(), PartitionSpec(), each), out_specs=PartitionSpec())
    def gradient(rows, weights, sizes, grads):
        return jax.vjp(lambda w: grouped_matmul(rows[0], w, sizes, "megablox_interpreted"), weights)[1](grads[0])[0]

    four = lambda a: jnp.stack([a, 2 * a, 3 * a, 4 * a])
    got = gradient(four(rows), weights, sizes, jnp.stack([grads] * 4))
    np.testing.assert_allclose(got, 10 * by_loop(*map(np.asarray, (rows, weights, sizes, grads)))[2], atol=1e-2)


CPU, TPU, HOPPER, BLACKWELL = ("cpu", "cpu"), ("tpu", "TPU v5"), ("gpu", "NVIDIA H200"), ("gpu", "NVIDIA B200")


@pytest.mark.parametrize(
    ("name", "on", "dtype", "message"),
    [
        ("megablox", CPU, "float32", "runs on tpu and this is a cpu (cpu): use one of 'auto', 'padded', 'megablox_int"),
        ("mosaic_gpu", BLACKWELL, "bfloat16", "and this is a NVIDIA B200 (gpu): use one of 'auto', 'padded'"),
        ("mosaic_gpu", HOPPER, "float32", "multiplies bfloat16 and float16, not model.dtype='float32'"),
        ("megablox_interpreted", CPU, "float64", "use one of 'auto', 'padded'"),
    ],
)
def test_what_a_device_lacks_is_refused_with_the_names_of_what_it_has(name, on, dtype, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as raised:
        implementation_of(name, *on, dtype)
    assert str(raised.value).startswith(f"moe.grouped_matmul={name!r} ") and "\n" not in str(raised.value)


def test_an_implementation_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package tokamax, which is not installed: pip install tokamax"):
        implementation_of("tokamax_gpu", *HOPPER, "bfloat16")


@pytest.mark.parametrize(
    ("on", "dtype", "name"),
    [
        (CPU, "bfloat16", "padded"), (TPU, "bfloat16", "megablox"), (TPU, "float64", "padded"),
        (HOPPER, "bfloat16", "mosaic_gpu"), (HOPPER, "float32", "padded"), (BLACKWELL, "bfloat16", "padded"),
    ],
)  # fmt: skip
def test_every_device_has_a_default(on, dtype, name):
    assert implementation_of("auto", *on, dtype) == name
