import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.benchmarks.layer import LayerCase, build, whole_layer
from moe_jax.moe.permute import permute


def test_permute_has_the_gradient_of_plain_indexing():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)
    source = jnp.array([2, 0, 6, 5, 2])  # row 2 twice, rows 1, 3 and 4 never; 6: past the end
    targets = jnp.array([[1, 5], [5, 5], [0, 4], [5, 5], [5, 5], [3, 5]])
    g = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
    plain = lambda x: jnp.where((source < 6)[:, None], x[jnp.minimum(source, 5)], 0)
    y, pull = jax.vjp(lambda x: permute(x, source, targets), x)
    y_plain, pull_plain = jax.vjp(plain, x)
    np.testing.assert_array_equal(y, y_plain)
    np.testing.assert_allclose(pull(g)[0], pull_plain(g)[0], rtol=1e-6)


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_capacity_path_holds_nothing_larger_than_its_buffers_and_scatters_no_token(top_k):
    """In the compiled forward and backward pass. The einsum path shows that the test can see what it looks for."""
    case = LayerCase(d_model=16, d_ff=32, num_experts=8, top_k=top_k, routing="uniform", tokens=512)
    slots = 512 * top_k
    largest = max(slots * 32, 8 * 16 * 32, 512 * 8 * top_k)  # hidden buffer, weights, one-hot choices
    too_large = {}
    for dispatcher in ("capacity", "einsum"):
        program, _ = whole_layer(*build(case, dispatcher))
        arrays = re.findall(r" = (\w+)\[([\d,]+)\]\S* (\w[\w-]*)\(", program.as_text())
        sizes = [(kind, operation, np.prod([int(n) for n in dims.split(",")])) for kind, dims, operation in arrays]
        too_large[dispatcher] = [size for size in sizes if size[2] > largest]
        assert not [size for size in sizes if size[0] == "f32" and size[1] == "scatter"]
        assert 512 * slots > largest  # T x E x C
    assert too_large["einsum"]
    assert not too_large["capacity"]
    capacity, einsum = (whole_layer(*build(case, d))[0].memory_analysis() for d in ("capacity", "einsum"))
    assert capacity.temp_size_in_bytes < einsum.temp_size_in_bytes
