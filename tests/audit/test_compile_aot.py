"""The training step of a tiny model, compiled for hardware that is not there. `make test-aot` has the compilers."""

import functools
from collections import Counter

import pytest
from jax import lax

from moe_jax.audit.compile import compile_train_step
from moe_jax.audit.contract import exchanges, violations
from moe_jax.audit.program import collectives, matmuls
from moe_jax.audit.targets import devices
from moe_jax.config import default_config
from moe_jax.parallel import sharding
from moe_jax.parallel.mesh import make_mesh
from moe_jax.resolve import resolve

pytestmark = pytest.mark.aot
LAYERS, MODEL, EXPERTS, LENGTH = 2, 512, 8, 256
TARGETS = ("v5p:2x2x2", "h100:8")


@functools.cache
def program(target, remat="save_exchange", data=1, fsdp=4, expert=2, **fields):
    """(text, collectives, run, mesh, peak bytes) of the step on 8 devices."""
    config = default_config()
    config.update_from_flattened_dict(
        {
            "model.num_layers": LAYERS, "model.d_model": MODEL, "model.d_ff": 1024, "model.num_heads": 4,
            "model.num_kv_heads": 4, "model.vocab_size": 512, "model.activation": "swiglu", "model.dtype": "bfloat16",
            "model.remat": remat, "moe.num_experts": EXPERTS, "moe.router": "top_k", "moe.top_k": 2,
            "moe.group_size": LENGTH, "data.sequence_length": LENGTH, "data.batch_size": 8,
            "mesh.data": data, "mesh.fsdp": fsdp, "mesh.expert": expert, **fields,
        }
    )  # fmt: skip
    there = devices(target)
    run = resolve(config, len(there))
    mesh = make_mesh(run.mesh, there)
    compiled, seconds = compile_train_step(run, mesh)
    assert seconds > 0
    text = compiled.as_text()
    found = collectives(text, mesh, run.moe.exchange_nodes)
    return text, found, run, mesh, compiled.memory_analysis().peak_memory_in_bytes


@pytest.mark.parametrize(
    ("target", "number", "platform"),
    [
        ("v4:2x2x1", 8, "tpu"), ("v5e:4x4", 16, "tpu"), ("v5p:4x4x4", 64, "tpu"), ("v6e:2x2", 4, "tpu"),
        ("tpu7x:2x2x1", 8, "tpu"), ("a100:8", 8, "gpu"), ("h100:8", 8, "gpu"), ("h100:2x8", 16, "gpu"),
        ("h200:2x8", 16, "gpu"), ("b200:4", 4, "gpu"), ("gb200:72", 72, "gpu"),
    ],
)  # fmt: skip
def test_devices(target, number, platform):
    found = devices(target)
    assert len(found) == number
    assert {device.platform for device in found} == {platform}


def test_a_topology_that_no_tpu_has():
    with pytest.raises(ValueError, match="target=v5p:3x3x3 is not a topology of v5p") as raised:
        devices("v5p:3x3x3")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("remat", "exchanges"), [("save_exchange", 4), ("full", 6)])
def test_tokens_cross_the_mesh_in_all_to_alls_only(target, remat, exchanges):
    found = program(target, remat)[1]
    tokens = [c for c in found if c.kind == "all-to-all"]
    slots = 80  # 1.25 * 2 * 256 / 8
    assert {(c.axes, c.bytes, c.dtype) for c in tokens} == {(("expert",), EXPERTS * slots * MODEL * 2, "bf16")}
    assert sum(c.count for c in tokens) == exchanges * LAYERS
    assert all("parallel/exchange.py" in c.source for c in tokens)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("remat", ["none", "save_exchange", "full"])
@pytest.mark.parametrize("sizes", [(1, 4, 2), (2, 2, 2)], ids=str)
def test_the_step_keeps_the_contract(target, remat, sizes):
    data, fsdp, expert = sizes
    _, found, run, mesh, _ = program(target, remat, data, fsdp, expert)
    assert violations(found, run, mesh) == []


DROPLESS, ONCE = {"moe.dispatcher": "dropless"}, {"moe.exchange_unique": True}
WAYS = {  # how tokens cross the mesh, and the kind of collective that takes them
    "once": (ONCE, "all-to-all"),
    "all_gather": (DROPLESS, "all-gather"),
    "all_to_all once, bounded": (
        {**DROPLESS, **ONCE, "moe.exchange": "all_to_all", "moe.exchange_bound": 1.1}, "all-to-all",
    ),
    "nodes": ({**DROPLESS, **ONCE, "moe.exchange": "all_to_all", "moe.exchange_nodes": 2}, "all-to-all"),
    "ragged": ({**DROPLESS, "moe.exchange": "ragged"}, "ragged-all-to-all"),
    "ragged once": ({**DROPLESS, **ONCE, "moe.exchange": "ragged"}, "ragged-all-to-all"),
}  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("way", WAYS)
def test_every_way_across_the_mesh_keeps_the_contract(target, way):
    fields, kind = WAYS[way]
    _, found, run, mesh, _ = program.__wrapped__(target, fsdp=2, expert=4, **fields)
    assert violations(found, run, mesh) == []
    platform = mesh.devices.flat[0].platform
    assert sum(count for exchanged, count in exchanges(run, platform).items() if exchanged.kind == kind) >= 4 * LAYERS


@pytest.mark.parametrize("target", TARGETS)
def test_a_weight_gathered_over_two_axes_at_once_breaks_it(target, monkeypatch):
    def at_once(x, axes, dim):
        live = tuple(axis for axis in axes if lax.axis_size(axis) > 1)
        return lax.all_gather(x, live, axis=dim, tiled=True) if live else x

    monkeypatch.setattr(sharding, "all_gather", at_once)
    _, found, run, mesh, _ = program.__wrapped__(target)
    assert violations(found, run, mesh)


@pytest.mark.parametrize("target", TARGETS)
def test_weights_are_gathered_and_scattered_axis_by_axis(target):
    found = program(target)[1]
    axes = Counter((c.kind, c.axes) for c in found if c.kind in ("all-gather", "reduce-scatter"))
    assert set(axes) == {(kind, (axis,)) for kind in ("all-gather", "reduce-scatter") for axis in ("fsdp", "expert")}
    assert all(c.axes for c in found)


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_reduced_over_the_whole_mesh_is_small(target):
    found = program(target)[1]
    assert max(c.bytes for c in found if c.kind == "all-reduce") <= 4 * MODEL * 4 * LAYERS


@pytest.mark.parametrize("target", TARGETS)
def test_exchanges_are_asynchronous(target):
    found = program(target)[1]
    assert any(c.asynchronous for c in found if c.kind == "all-to-all")


@pytest.mark.parametrize("target", TARGETS)
def test_the_router_multiplies_in_float32(target):
    text = program(target)[0]
    router = [m for m in matmuls(text) if "moe/router.py" in m.source]
    assert router
    assert {(m.result, m.precision) for m in router} == {("f32", ("highest", "highest"))}


@pytest.mark.parametrize("target", TARGETS)
def test_memory_is_known(target):
    assert program(target)[4] > 0
