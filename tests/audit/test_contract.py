"""The contract holds for the compiled step on fake devices, and a planted violation of each clause breaks it."""

import dataclasses
import functools
import re
from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from invariance import PARTS_OF_MODELS
from jax import lax
from jax.sharding import PartitionSpec as P

from moe_jax.audit.compile import compile_train_step
from moe_jax.audit.contract import Exchanged, exchanges, violations
from moe_jax.audit.program import collectives
from moe_jax.config import MeshConfig, MoEConfig, default_config
from moe_jax.moe import delivery, layer
from moe_jax.moe.context import plain_context
from moe_jax.moe.dispatchers import buffers as dispatch
from moe_jax.moe.feed_forward import Experts
from moe_jax.moe.layer import MoELayer
from moe_jax.parallel import exchange, sharding
from moe_jax.parallel.collectives import sum_over, sum_parts, varying
from moe_jax.parallel.mesh import TOKEN_AXES, make_mesh
from moe_jax.resolve import ConfigError, resolve

apply_experts = Experts.__call__
TENSOR_MESH = {"fsdp": 2, "expert": 2, "tensor": 2}
MESHES = (
    {"expert": 8},
    {"data": 2, "expert": 4},
    {"fsdp": 2, "expert": 2, "tensor": 2},
    {"data": 2, "fsdp": 2, "expert": 2},
    {"fsdp": 8},
)


def compiled(mesh, **fields):
    """(collectives, run, mesh) of a step on eight devices: four layers, two of them MoE."""
    config = default_config()
    config.update_from_flattened_dict(
        {
            "model.num_layers": 4, "model.d_model": 24, "model.d_ff": 32, "model.num_heads": 4, "model.num_kv_heads": 2,
            "model.head_dim": 12, "model.vocab_size": 40, "moe.num_experts": 8, "moe.every": 2, "moe.top_k": 2,
            "moe.router": "top_k", "moe.group_size": 30, "data.sequence_length": 30, "data.batch_size": 8,
            "attention.chunk": 30, "model.loss_chunk": 30,
            **{f"mesh.{axis}": size for axis, size in mesh.items()}, **fields,
        }
    )  # fmt: skip
    run = resolve(config, 8)
    on = make_mesh(run.mesh)
    program, _ = compile_train_step(run, on)
    return collectives(program.as_text(), on, run.moe.exchange_nodes), run, on


compiled_once = functools.cache(lambda: compiled({"data": 2, "expert": 4}))


@pytest.mark.parametrize(
    ("mesh", "remat"),
    [
        pytest.param(
            mesh, remat, marks=[] if remat == ("full" if mesh == TENSOR_MESH else "save_exchange") else pytest.mark.slow
        )
        for mesh in MESHES
        for remat in ("none", "full", "save_exchange")
    ],
    ids=str,
)
def test_the_step_keeps_the_contract(mesh, remat):
    found, run, on = compiled(mesh, **{"model.remat": remat})
    assert violations(found, run, on) == []
    exchanged = [c for c in found if c.kind == "all-to-all"]
    layers, passes = 2, 6 if remat == "full" else 4
    assert sum(c.count for c in exchanged) == (layers * passes if "expert" in mesh else 0)
    # E * C * D floats of this device's groups; C = ceil(1.25 * 2 * 30 / 8) = 10.
    groups = 8 // (on.size // mesh.get("tensor", 1))
    assert {c.bytes for c in exchanged} <= {groups * 8 * 10 * 24 * 4}
    one = Exchanged("all-to-all", ("expert",), groups * 8 * 10 * 24 * 4)
    assert exchanges(run, "cpu") == ({one: layers * passes} if "expert" in mesh else {})
    if set(mesh) & {"fsdp", "expert"}:
        assert {c.axes for c in found if c.kind == "reduce-scatter"} <= {("fsdp",), ("expert",)}
        assert any(c.kind == "reduce-scatter" for c in found)


ROUTED = {
    "expert choice": {"moe.router": "expert_choice", "moe.balance_loss": 0.0},
    "soft": {
        "moe.router": "soft", "moe.balance_loss": 0.0, "moe.eval_capacity_factor": 1.25, "moe.num_shared_experts": 1,
    },
    "expert dropout": {"moe.expert_dropout": 0.1},
    "quantile balancing": {"moe.router": "sigmoid", "moe.bias_rate": 1.0, "moe.bias_update": "quantile"},
}  # fmt: skip


@pytest.mark.parametrize("fields", ROUTED.values(), ids=ROUTED)
@pytest.mark.parametrize("mesh", [pytest.param({"data": 2, "expert": 4}, marks=pytest.mark.slow), TENSOR_MESH], ids=str)
def test_every_way_to_the_experts_keeps_the_contract(mesh, fields):
    found, run, on = compiled(mesh, **fields)
    assert violations(found, run, on) == []
    noise = 2 if run.moe.expert_dropout else 0
    assert sum(c.count for c in found if c.kind == "all-to-all") == 8 + noise


DROPLESS = {"moe.dispatcher": "dropless"}
ONCE = {"moe.exchange_unique": True}
WAYS = {  # how tokens cross, and on how many exchanges of what size, for each of the two layers of 30 tokens a device
    "once": (ONCE, {"f32[20,24]": 8, "f32[20,2]": 4, "s32[20,2]": 2}),
    "all_gather": (DROPLESS, {}),
    "all_to_all": ({**DROPLESS, "moe.exchange": "all_to_all"}, {"f32[60,24]": 8, "s32[60,1]": 2}),
    "nodes": (
        {**DROPLESS, **ONCE, "moe.exchange": "all_to_all", "moe.exchange_nodes": 2, "moe.expert_dropout": 0.1},
        {
            "f32[30,24]": 8, "f32[60,24]": 8, "f32[30,2]": 4, "f32[60,2]": 4, "s32[30,2]": 2, "s32[60,2]": 2,
            "u32[30,2]": 2, "u32[60,2]": 2,
        },
    ),
    "ragged": ({**DROPLESS, "moe.exchange": "ragged"}, {"f32[1,60,24]": 8, "s32[1,60,1]": 2}),
    "ragged once": (
        {**DROPLESS, **ONCE, "moe.exchange": "ragged", "moe.router": "llama4", "moe.balance_loss": 0.0},
        {"f32[1,60,24]": 8, "f32[1,60,2]": 6, "s32[1,60,2]": 2},
    ),
}  # fmt: skip


QUICK_WAYS = ("nodes",)


@pytest.mark.parametrize("remat", ["save_exchange", pytest.param("full", marks=pytest.mark.slow)])
@pytest.mark.parametrize("way", [pytest.param(w, marks=() if w in QUICK_WAYS else pytest.mark.slow) for w in WAYS])
def test_every_way_across_the_mesh_keeps_the_contract(way, remat):
    fields, shapes = WAYS[way]
    found, run, on = compiled({"data": 2, "expert": 4}, **fields, **{"model.remat": remat})
    assert violations(found, run, on) == []
    if remat == "save_exchange":
        counts = Counter()
        for c in found:
            counts.update({c.shapes[0]: c.count} if "all-to-all" in c.kind else {})
        assert counts == shapes
        if way == "all_gather":  # XLA for GPU packs gathers into one
            alike = [c for c in found if c.kind == "all-gather" and c.axes == ("expert",) and c.count == 2]
            shapes_of_all = tuple(shape for c in alike for shape in c.shapes)
            joined = dataclasses.replace(alike[0], shapes=shapes_of_all, bytes=sum(c.bytes for c in alike))
            assert len(alike) > 1
            assert violations([*(c for c in found if c not in alike), joined], run, on) == []
            twice = dataclasses.replace(joined, count=4.0)
            assert violations([*(c for c in found if c not in alike), twice], run, on)
        if way == "nodes":
            assert {c.axes for c in found if c.kind == "all-to-all"} == {("expert:nodes",), ("expert:inside",)}


@pytest.mark.parametrize(
    "fields",
    [{"moe.exchange_chunks": 3}, {"train.accumulate": 2, "data.batch_size": 16}, {"moe.exchange_dtype": "bfloat16"}],
    ids=str,
)
def test_pieces_micro_batches_and_wire_precision_are_in_the_contract(fields):
    found, run, on = compiled({"data": 2, "expert": 4}, **fields)
    assert violations(found, run, on) == []


@pytest.mark.parametrize(
    ("mesh", "fields"),
    [
        ({"fsdp": 4, "tensor": 2}, {"moe.num_experts": 0, "moe.top_k": 1}),
        (
            {"fsdp": 2, "expert": 2, "tensor": 2},
            {
                "model.tie_embeddings": True,
                "moe.num_shared_experts": 2,
                "moe.balance_loss": 0.0,
                "moe.router_by_layer": ("expert_choice", "top_k"),
            },
        ),
        pytest.param(
            {"data": 4, "expert": 2},
            {"moe.num_experts_by_layer": (4, 8), "moe.bias_rate": 0.1, "moe.balance_scope": "sequence"},
            marks=pytest.mark.slow,
        ),
        ({"fsdp": 4, "expert": 2}, {"model.dtype": "bfloat16", "moe.first_dense": 1, "moe.every": 1}),
    ],
    ids=str,
)
def test_other_models_keep_it_too(mesh, fields):
    found, run, on = compiled(mesh, **fields)
    assert found
    assert violations(found, run, on) == []


RANKS = {"latent": {"attention.query_rank": 16, "attention.kv_rank": 8}}  # that all meshes here divide


@pytest.mark.parametrize(
    "parts", [pytest.param(part, marks=() if part == "latent" else pytest.mark.slow) for part in PARTS_OF_MODELS]
)
@pytest.mark.parametrize("mesh", [TENSOR_MESH, pytest.param({"fsdp": 4, "expert": 2}, marks=pytest.mark.slow)], ids=str)
def test_the_parts_of_published_models_keep_it_too(mesh, parts):
    """Latent attention with shared and sigmoid experts; biases, sinks, windows and norms of queries and keys."""
    found, run, on = compiled(mesh, **{"model.num_layers": 2, **PARTS_OF_MODELS[parts], **RANKS.get(parts, {})})
    assert violations(found, run, on) == []
    assert sum(c.count for c in found if c.kind == "all-to-all") == 4


def test_a_kernel_that_the_platform_does_not_have_is_refused_before_compiling():
    with pytest.raises(ConfigError, match=r"attention\.kernel='cudnn' runs on gpu and JAX is on cpu: use .*'xla'"):
        compiled({"expert": 8}, **{"attention.kernel": "cudnn", "model.dtype": "bfloat16"})


def broken(mesh={"data": 2, "expert": 4}, **fields):  # noqa: B006, never changed
    return "\n".join(violations(*compiled(mesh, **fields)))


def test_a_gathered_token_buffer(monkeypatch):
    def through_a_gather(buffers):
        everything = lax.all_gather(exchange.to_experts(buffers), "expert", axis=0, tiled=True)
        own = everything.shape[0] // lax.axis_size("expert")
        return lax.dynamic_slice_in_dim(everything, lax.axis_index("expert") * own, own)

    monkeypatch.setattr(dispatch, "to_experts", through_a_gather)
    assert "is no weight's, whole or in part" in broken()


@pytest.mark.parametrize("axis", ["expert", "data"])
def test_tokens_that_are_passed_on(monkeypatch, axis):
    def around(buffers):
        n = lax.axis_size(axis)
        there, back = [[(i, (i + step) % n) for i in range(n)] for step in (1, -1)]
        return exchange.to_experts(lax.ppermute(lax.ppermute(buffers, axis, there) * 1.5, axis, back))

    monkeypatch.setattr(dispatch, "to_experts", around)
    assert "nothing of this size is passed on" in broken()


def test_a_weight_gathered_again_for_every_piece(monkeypatch):
    monkeypatch.setattr(Experts, "__call__", lambda self, b, w, mask: apply_experts(self, b, self.gathered(b.dtype)))
    assert "elements of gradients are scattered over fsdp" in broken(
        {"fsdp": 4, "expert": 2}, **{"moe.exchange_chunks": 3}
    )


def test_integers_that_are_gathered(monkeypatch):
    def with_integers(buffers):
        order = lax.all_gather(jnp.argsort(buffers[0, 0, :, 0]), "expert", tiled=True)
        return exchange.to_experts(buffers + order[0])

    monkeypatch.setattr(dispatch, "to_experts", with_integers)
    assert "s32 is no weight's" in broken()


def test_an_exchange_too_many(monkeypatch):
    monkeypatch.setattr(
        dispatch, "to_experts", lambda b: exchange.to_experts(exchange.from_experts(exchange.to_experts(b)) * 1.5)
    )
    assert "16 all-to-alls in a step, not 8" in broken()


def test_an_exchange_that_runs_again_in_the_backward_pass(monkeypatch):
    monkeypatch.setattr(dispatch, "checkpoint_name", lambda x, name: x)
    assert "12 all-to-alls in a step, not 8" in broken(**{"model.remat": "save_exchange"})


@pytest.mark.parametrize("way", ["once", *(pytest.param(way, marks=pytest.mark.slow) for way in ("nodes", "ragged"))])
def test_rows_that_cross_more_often(monkeypatch, way):
    kind = delivery.Ragged if way == "ragged" else delivery.Padded
    there, back = kind.there, delivery.Ragged.back if way == "ragged" else kind.there
    monkeypatch.setattr(kind, "there", lambda self, rows: there(self, back(self, there(self, rows) * 2)))
    assert re.search(r"\d+ all-to-alls in a step, not \d+", broken(**WAYS[way][0]))


@pytest.mark.slow
def test_tokens_gathered_more_often(monkeypatch):
    gather = delivery.gather_rows
    monkeypatch.setattr(delivery, "gather_rows", lambda rows: gather(rows) + gather(rows[::-1] * 2))
    assert "6 all-gathers of 11520 bytes in a step, not 4" in broken(**DROPLESS)


def test_sums_scattered_more_often(monkeypatch):
    scatter = delivery.scatter_sums
    monkeypatch.setattr(delivery, "scatter_sums", lambda rows: scatter(rows) + scatter(rows[::-1] * 2))
    assert re.search(r"reduce-scatters of 11520 bytes in a step, not 4", broken(**DROPLESS))


def test_a_weight_gathered_over_two_axes_at_once(monkeypatch):
    def at_once(x, axes, dim):
        live = tuple(axis for axis in axes if lax.axis_size(axis) > 1)
        return lax.all_gather(x, live, axis=dim, tiled=True) if live else x

    monkeypatch.setattr(sharding, "all_gather", at_once)
    assert "one at a time" in broken({"fsdp": 2, "expert": 4})


def test_gradients_summed_over_data_before_they_are_scattered(monkeypatch):
    monkeypatch.setattr(sharding, "varying", lambda x, axes: x)
    assert "elements are summed over data, more than" in broken({"data": 2, "fsdp": 4})


SOFT = {"moe.router": "soft", "moe.balance_loss": 0.0, "moe.eval_capacity_factor": 1.25}
QUANTILE = {"moe.router": "sigmoid", "moe.bias_rate": 1.0, "moe.bias_update": "quantile"}


def test_routed_and_shared_experts_summed_apart(monkeypatch):
    apart = lambda parts, axis: sum(sum_over(part, [axis]) for part in parts)
    monkeypatch.setattr(layer, "sum_parts", apart)
    assert "elements are summed over tensor, more than" in broken(TENSOR_MESH, **{"moe.num_shared_experts": 1})


@pytest.mark.parametrize("fields", [{}, pytest.param(SOFT, marks=pytest.mark.slow)], ids=["tokens", "slots"])
def test_tokens_summed_over_tensor_once_more(monkeypatch, fields):
    once_more = lambda parts, axis: lax.psum(varying(sum_parts(parts, axis) * 0.5, [axis]), axis)
    monkeypatch.setattr(layer, "sum_parts", once_more)
    assert "elements are summed over tensor, more than" in broken(TENSOR_MESH, **fields)


@pytest.mark.parametrize("fields", [pytest.param({}, marks=pytest.mark.slow), QUANTILE], ids=["load", "quantile"])
def test_tokens_summed_over_expert(monkeypatch, fields):
    over_expert = lambda parts, axis: lax.psum(sum_parts(parts, axis), "expert")
    monkeypatch.setattr(layer, "sum_parts", over_expert)
    assert "of statistics and norms" in broken({"expert": 8}, **fields)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("all-to-all", {"axes": ("data",)}, "tokens are exchanged over the axis expert alone"),
        ("all-to-all", {"bytes": 1.0}, "the all-to-alls of a step hold"),
        ("all-reduce", {"axes": ()}, "its replica groups are those of no mesh axis"),
    ],
)
def test_collectives_that_no_patch_plants(kind, change, message):
    found, run, on = compiled_once()
    changed = [dataclasses.replace(c, **change) if c.kind == kind else c for c in found]
    assert message in "\n".join(violations(changed, run, on))


def test_statistics_of_one_shard_do_not_even_trace():
    """Returned as if they were the same everywhere, they are refused: their type says over which axes they vary."""
    moe = MoEConfig(num_experts=8, d_ff=8, activation="relu", group_size=4)
    graphdef, weights = nnx.split(nnx.eval_shape(lambda: MoELayer(8, moe, nnx.initializers.ones, nnx.Rngs(0))))
    on = make_mesh(MeshConfig(data=2, expert=4))

    def statistics(weights, x, reduce):
        _, sums = nnx.merge(graphdef, weights)(x, plain_context(x.shape[:2]), True)
        return reduce(sums)

    def trace(reduce):
        specs = sharding.weight_specs(on, weights), sharding.spec_of(on, TOKEN_AXES)
        function = jax.shard_map(functools.partial(statistics, reduce=reduce), mesh=on, in_specs=specs, out_specs=P())
        return jax.eval_shape(function, nnx.to_pure_dict(weights), jax.ShapeDtypeStruct((8, 4, 8), jnp.float32))

    assert trace(lambda sums: sum_over(sums, TOKEN_AXES))["choices"].shape == (8,)
    with pytest.raises(ValueError, match=r"out_specs"):
        trace(lambda sums: sums)


def test_one_device_exchanges_nothing():
    config = default_config()
    config.update_from_flattened_dict({"moe.num_experts": 4, "data.batch_size": 2, "moe.group_size": 128})
    run = resolve(config)
    on = make_mesh(run.mesh)
    program, _ = compile_train_step(run, on)
    assert collectives(program.as_text(), on) == []
