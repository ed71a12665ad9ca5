"""The steps of decoding a small model, compiled for hardware that is not there. `make test-aot` has the compilers."""

from collections import Counter

import pytest

from moe_jax.audit.compile import compile_decode_step
from moe_jax.audit.hlo import arrays
from moe_jax.audit.program import collectives
from moe_jax.audit.targets import devices
from moe_jax.config import default_config
from moe_jax.parallel.mesh import make_mesh
from moe_jax.resolve import resolve

pytestmark = pytest.mark.aot
LAYERS, MODEL, EXPERTS, TENSOR = 2, 512, 8, 2


def decoding(target, expert, places, piece, form):
    """(program, collectives) of a step."""
    config = default_config()
    config.update_from_flattened_dict(
        {
            "model.num_layers": LAYERS, "model.d_model": MODEL, "model.d_ff": 1024, "model.num_heads": 4,
            "model.num_kv_heads": 4, "model.vocab_size": 256, "model.activation": "swiglu", "model.dtype": "bfloat16",
            "moe.num_experts": EXPERTS, "moe.router": "top_k", "moe.top_k": 2, "moe.group_size": 256,
            "data.sequence_length": 256, "data.batch_size": 8, "mesh.data": 1, "mesh.expert": expert,
            "mesh.tensor": TENSOR,
        }
    )  # fmt: skip
    there = devices(target)[: expert * TENSOR]
    run = resolve(config, len(there))
    mesh = make_mesh(run.mesh, there)
    compiled, _ = compile_decode_step(run, mesh, places, 256, piece, form)
    return compiled, collectives(compiled.as_text(), mesh)


@pytest.mark.parametrize("target", ["v5p:2x2x2", "h100:8"])
@pytest.mark.parametrize(
    ("expert", "places", "piece"), [(1, 1, 1), (4, 64, 1), (4, 4, 128)], ids=["one sequence", "many", "a prompt"]
)
def test_tokens_cross_the_mesh_and_no_weights_do(target, expert, places, piece):
    sizes = {}
    for form in ("", "int8"):
        compiled, found = decoding(target, expert, places, piece, form)
        sizes[form] = compiled.memory_analysis().argument_size_in_bytes
        there = max(places // expert, 1) * piece * expert  # tokens of all devices along `expert`
        passed = [(c, array) for c in found for shape in c.shapes for array in arrays(shape)]
        assert max(array.bytes for _, array in passed) <= there * MODEL * 4  # a sum may be taken in float32
        counts = Counter()
        for c, array in passed:
            if array.dims[-1:] == (MODEL,):
                counts[c.kind, c.axes] += c.count
        exchange = {("all-gather", ("expert",)): LAYERS, ("reduce-scatter", ("expert",)): LAYERS}
        summed = {("all-reduce", ("tensor",)): 2 * LAYERS}  # behind attention, and behind the experts
        assert counts == {**summed, **(exchange if expert > 1 else {})}
    assert sizes["int8"] < 0.8 * sizes[""]  # the caches and the embedding stay as they are
