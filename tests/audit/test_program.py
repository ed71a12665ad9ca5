"""The reader of compiled programs, on programs whose collectives are known.

They are compiled here for 8 CPU devices, or kept as text from the compilers for TPU v5p and H100 (hlo/*.txt).
"""

import pathlib
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from configurations import run_of
from jax import lax
from jax.sharding import AbstractMesh, AxisType, Mesh
from jax.sharding import PartitionSpec as P

from moe_jax.audit.compile import build
from moe_jax.audit.hlo import arrays, parse
from moe_jax.audit.program import bytes_sent, collectives, matmuls
from moe_jax.audit.replica_groups import axes_of_pairs, axes_of_replica_groups, replica_groups
from moe_jax.audit.table import audit, table
from moe_jax.parallel.mesh import make_mesh

AXES = ("data", "fsdp", "expert")
HLO = pathlib.Path(__file__).parent / "hlo"


def grid(*shape):
    return Mesh(np.array(jax.devices()).reshape(shape), AXES, axis_types=(AxisType.Auto,) * 3)


MESH = grid(2, 2, 2)


def compiled(function, spec, *shapes, out=None, mesh=MESH):
    """The program of `function` on every device's own part, cut by `spec` along the first dimension."""
    mapped = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec if out is None else out, check_vma=False)
    return jax.jit(mapped).lower(*[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]).compile().as_text()


def only(found):
    (one,) = found
    return one


def gather(axes):
    return lambda x: jnp.sin(lax.all_gather(x, axes, axis=0, tiled=True))


@pytest.mark.parametrize(
    "axes", [("data",), ("fsdp",), ("expert",), ("fsdp", "expert"), ("data", "expert"), ("data", "fsdp", "expert")]
)
def test_a_gather_is_found_over_exactly_its_axes(axes):
    found = only(collectives(compiled(gather(axes), P(AXES), (16, 3), out=P()), MESH))
    assert (found.kind, found.axes, found.replica_group_size) == ("all-gather", axes, 2 ** len(axes))
    assert found.bytes == 2 * 2 ** len(axes) * 3 * 4  # 2 rows a device, float32, gathered
    assert bytes_sent(found) == found.bytes * (1 - 2 ** -len(axes))


def test_one_gather_over_two_axes_is_told_from_one_after_the_other():
    def in_turn(x):
        return gather("fsdp")(gather("expert")(x))

    at_once = collectives(compiled(gather(("fsdp", "expert")), P(AXES), (16, 3), out=P()), MESH)
    in_turn = collectives(compiled(in_turn, P(AXES), (16, 3), out=P()), MESH)
    assert [c.axes for c in at_once] == [("fsdp", "expert")]
    assert [c.axes for c in in_turn] == [("expert",), ("fsdp",)]


def test_a_permuted_mesh_changes_nothing():
    mesh = Mesh(np.array(jax.devices())[::-1].reshape(2, 2, 2).transpose(2, 0, 1), AXES)
    assert only(collectives(compiled(gather("fsdp"), P(AXES), (16, 3), out=P(), mesh=mesh), mesh)).axes == ("fsdp",)


def test_kinds_and_bytes():
    def function(x):
        x = jnp.sin(lax.all_to_all(x, "expert", 0, 0, tiled=True))
        x = jnp.sin(lax.psum(x, "data"))
        x = jnp.sin(lax.ppermute(x, "fsdp", [(0, 1), (1, 0)]))
        return lax.psum_scatter(x, ("fsdp", "expert"), scatter_dimension=0, tiled=True)

    found = {c.kind: c for c in collectives(compiled(function, P(AXES), (64, 3)), MESH)}
    buffer = 8 * 3 * 4  # 8 rows a device
    assert {kind: (c.axes, c.bytes, bytes_sent(c)) for kind, c in found.items()} == {
        "all-to-all": (("expert",), buffer, buffer / 2),
        "all-reduce": (("data",), buffer, buffer),
        "collective-permute": (("fsdp",), buffer, buffer),
        "reduce-scatter": (("fsdp", "expert"), buffer, buffer * 3 / 4),
    }
    assert not any(c.asynchronous or c.overlapped for c in found.values())  # CPU blocks
    assert all(c.dtype == "f32" and c.count == 1 for c in found.values())
    assert "test_program.py" in found["all-to-all"].source
    assert "all_to_all" in found["all-to-all"].op_name


def test_loops_multiply():
    def inner(x, _):
        return jnp.sin(lax.all_to_all(x, "expert", 0, 0, tiled=True)), None

    def outer(x, _):
        x, _ = lax.scan(inner, x, length=5)
        return jnp.sin(lax.psum(x, "fsdp")), None

    def function(x):
        return lax.psum(lax.scan(outer, x, length=7)[0], "data")

    found = collectives(compiled(function, P(AXES), (64, 3)), MESH)
    assert {(c.kind, c.axes): c.count for c in found} == {
        ("all-to-all", ("expert",)): 35,
        ("all-reduce", ("fsdp",)): 7,
        ("all-reduce", ("data",)): 1,
    }


def test_a_loop_without_a_known_length_is_refused_only_where_it_matters():
    def until_large(body):
        return lambda x: lax.while_loop(lambda x: jnp.max(x) < 100, body, x)

    quiet = compiled(lambda x: lax.psum(until_large(lambda x: x * 2)(x), "data"), P(AXES), (16, 3))
    assert [c.count for c in collectives(quiet, MESH)] == [1]
    loud = compiled(until_large(lambda x: x + lax.psum(x, AXES)), P(), (16, 3))
    with pytest.raises(ValueError, match="trip count"):
        collectives(loud, MESH)


def test_every_branch_of_a_conditional_counts():
    def function(x):
        return lax.cond(x[0, 0] > 0, lambda x: lax.psum(x, "data"), lambda x: lax.psum(x * 2, "fsdp"), x)

    found = collectives(compiled(function, P(AXES), (16, 3)), MESH)
    assert {c.axes: c.count for c in found} == {("data",): 1, ("fsdp",): 1}


def test_a_tuple_of_arrays_is_summed():
    text = compiled(lambda x, y: lax.psum((x, y), "data"), P(AXES), (16, 3), (16, 5))
    assert sum(c.bytes for c in collectives(text, MESH)) == 2 * (3 + 5) * 4


def test_matmuls_show_their_precision():
    def function(x):
        exact = jnp.dot(x, x, precision="highest")
        return exact + jnp.dot(x.astype(jnp.bfloat16), x.astype(jnp.bfloat16)).astype(x.dtype)

    found = matmuls(compiled(function, P(), (256, 256)))
    assert (("f32", "f32"), ("highest", "highest")) in [(m.operands, m.precision) for m in found]
    assert all("test_program.py" in m.source for m in found)


FORMS = {
    "replica_groups={{0,1},{2,3},{4,5},{6,7}}": ("expert",),
    "replica_groups={{0,4},{1,5},{2,6},{3,7}}": ("data",),
    "replica_groups={{4,0},{5,1},{6,2},{7,3}}": ("data",),
    "replica_groups={}": AXES,
    "replica_groups=[2,4]<=[8]": ("fsdp", "expert"),
    "replica_groups=[4,2]<=[2,4]T(1,0)": ("data",),
    "replica_groups=[4,2]<=[2,2,2]T(0,2,1)": ("fsdp",),
    "replica_groups=mesh['a'=2,'b'=2,'c'=2] {'c','a'}": ("data", "expert"),
    "replica_groups=mesh['a'=8] {'a':(2)2}": ("fsdp",),
    "replica_groups=mesh['a'=8] {'a':(1)2,'a':(4)2}": ("data", "expert"),
    "replica_groups=mesh['a'=2,'b'=4], device_ids=(0,2,4,6,1,3,5,7) {'a'}": ("expert",),
    "replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}": ("expert",),
    "replica_groups={{0,1},{2,4},{3,5},{6,7}}": (),
    "replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}": (),
}


@pytest.mark.parametrize(("printed", "axes"), FORMS.items())
def test_forms_of_replica_groups(printed, axes):
    assert axes_of_replica_groups(replica_groups(f", channel_id=1, {printed}, dimensions=...", 8), MESH) == axes


def test_groups_that_fit_no_axes_keep_their_size():
    text = compiled(gather("expert"), P(AXES), (16, 3), out=P())
    odd = re.sub(r"replica_groups=.*?, dimensions", "replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions", text)
    found = only(collectives(odd, grid(4, 2, 1)))
    assert (found.axes, found.replica_group_size) == ((), 4)
    assert bytes_sent(found) == found.bytes * 3 / 4


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="known form"):
        replica_groups("replica_groups=new_form", 8)


def test_permutes_along_two_axes():
    assert axes_of_pairs(np.array([[0, 5], [3, 6]]), MESH) == ("data", "expert")


def test_text_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        parse("module @jit_f {}")


def test_sizes():
    shape = "(bf16[2,3]{1,0:T(8,128)(2,1)}, (pred[5]{0}, s4[4]{0}), f8e4m3fn[7]{0}, f32[], token[])"
    assert [array.bytes for array in arrays(shape)] == [12, 5, 2, 7, 4, 0]


# The two programs kept as text: mesh 2 x 2 x 2, three scanned layers of x -> all-to-all(all-to-all(x) @ all-gather(w)).
# Beside it the router's x @ r in float32, summed over rows and scattered over expert; at the end a sum over data, fsdp.
LAYER = {("all-to-all", ("expert",)): 6, ("all-gather", ("fsdp",)): 3, ("all-reduce", ("data", "fsdp")): 1}
PROGRAMS = {
    "gpu_h100": LAYER | {("reduce-scatter", ("expert",)): 3},  # the first iteration is peeled off the loop
    "tpu_v5p": LAYER | {("all-reduce", ("expert",)): 3},  # too small to be scattered
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_of_real_compilers(name):
    found = collectives((HLO / f"{name}.txt").read_text(), MESH)
    counts = Counter()
    for c in found:
        counts[c.kind, c.axes] += c.count
    assert dict(counts) == PROGRAMS[name]
    sizes = {(c.kind, c.axes): (c.dtype, c.bytes) for c in found}
    assert sizes["all-to-all", ("expert",)] == ("bf16", 512 * 1024 * 2)
    assert sizes["all-gather", ("fsdp",)] == ("bf16", 1024 * 1024 * 2)
    assert sizes["all-reduce", ("data", "fsdp")] == ("f32", 3 * 1024 * 4)
    assert {c.source.split(" > ")[-1] for c in found if c.kind == "all-gather"} == {"tiny/model.py:15"}


def test_asynchronous_on_gpu():
    found = collectives((HLO / "gpu_h100.txt").read_text(), MESH)
    exchanges = [c for c in found if c.kind == "all-to-all" and c.count == 2]
    assert [(c.asynchronous, c.overlapped) for c in exchanges] == [(True, ()), (True, ("dot", "fusion"))]
    assert [c.hidden for c in exchanges] == [False, True]
    assert not any(c.asynchronous for c in found if c.kind == "all-gather")


def test_asynchronous_on_tpu():
    found = collectives((HLO / "tpu_v5p.txt").read_text(), MESH)
    gathered = only(c for c in found if c.kind == "all-gather")
    assert gathered.asynchronous  # by the SparseCore: a computation of its own, between call-start and call-done
    exchanges = [(c.asynchronous, c.overlapped) for c in found if c.kind == "all-to-all"]
    assert exchanges == [(True, ("fusion",)), (True, ("all-reduce", "dot"))]
    beside = next(c for c in found if c.kind == "all-to-all")
    # A slice of bf16[512,1024] from a stack of three, at an index of four bytes: as much as is exchanged.
    assert (beside.overlapped_bytes, beside.bytes, beside.hidden) == (512 * 1024 * 2 + 4, 512 * 1024 * 2, True)
    assert not any(c.asynchronous or c.overlapped for c in found if c.kind == "all-reduce")


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_router_multiplies_in_float32(name):
    found = matmuls((HLO / f"{name}.txt").read_text())
    router = [m for m in found if m.source.endswith("model.py:13")]
    experts = [m for m in found if m.source.endswith("model.py:15")]
    assert router
    assert experts
    assert all(m.result == "f32" and m.precision == ("highest", "highest") for m in router)
    assert all(m.operands == ("bf16", "bf16") and m.precision == () for m in experts)


def test_a_padded_all_reduce_and_slice_is_a_reduce_scatter():
    mesh = AbstractMesh((8, 8), ("fsdp", "expert"))
    scattered, passed = collectives((HLO / "tpu_v5p_padded.txt").read_text(), mesh)
    assert (scattered.kind, scattered.axes, scattered.bytes) == ("reduce-scatter", ("fsdp",), 14400 * 4096 * 2)
    assert (passed.kind, passed.axes, passed.bytes) == ("collective-permute", ("fsdp",), 56 * 4096 * 2)


@pytest.mark.parametrize("method", ["as_text", "memory_analysis"])
def test_an_audit_needs_text_and_memory(monkeypatch, method):
    program = jax.jit(jnp.sin).lower(1.0).compile()
    monkeypatch.setattr(type(program), method, lambda self: None)
    with pytest.raises(ValueError, match="reports no text or no memory"):
        build(lambda: (program, 0.0))


def test_the_audit_counts_the_models_flops():
    """One layer of four heads of 16 dimensions over 128 positions, weights by hand: attention, feed-forward, head."""
    run = run_of({"model.num_layers": 1, "data.sequence_length": 128})
    weights, scores = 4 * 64 * 64 + 2 * 64 * 256 + 64 * 264, 2 * 64 * 128
    result = audit(run, make_mesh(run.mesh), build(lambda: (jax.jit(jnp.sin).lower(1.0).compile(), 0.0)))
    assert result["flops_per_token"] == 6 * (weights + scores)
    assert result["causal_flops_per_token"] == 6 * weights + 3 * scores
    assert "0.00 GFLOPs a token, 0.00 with half of the scores" in table(result)
