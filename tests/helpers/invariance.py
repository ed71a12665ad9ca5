"""A few steps of a small model on any mesh, with all that could differ: noise, padding, accumulation, and so on."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding

from moe_jax.config import default_config
from moe_jax.data.pipeline import Batch
from moe_jax.moe.routers import ROUTERS
from moe_jax.optim.optimizer import make_optimizer
from moe_jax.parallel.mesh import AXES, TOKEN_AXES, make_mesh
from moe_jax.parallel.sharding import spec_of
from moe_jax.resolve import resolve
from moe_jax.tasks.registry import task_of
from moe_jax.train.state import build_model, init_state, state_shapes
from moe_jax.train.step import make_train_step

MESHES = (
    {"expert": 8},
    {"data": 2, "expert": 4},
    {"fsdp": 2, "expert": 2, "tensor": 2},
    {"data": 2, "fsdp": 2, "expert": 2},
    {"fsdp": 8},
    {"tensor": 2, "data": 4},
)
ROUTINGS = {
    "switch": {"moe.router": "switch", "moe.top_k": 1, "model.tie_embeddings": True},
    "gshard": {
        "moe.router": "gshard", "moe.top_k": 2, "moe.second_expert": "random", "moe.expert_dropout": 0.2,
        "moe.balance_scope": "global_batch",
    },
    "by_layer": {
        "moe.router": "top_k", "moe.top_k": 3, "moe.num_experts": 16, "moe.num_experts_by_layer": (8, 16),
        "moe.top_k_by_layer": (2, 3), "moe.bias_rate": 0.01, "moe.balance_scope": "sequence",
        "moe.importance_loss": 0.01, "moe.router_by_layer": ("sigmoid", "top_k"),
    },
    "top_k": {
        "moe.router": "top_k", "moe.top_k": 4, "moe.normalize_gates": True, "moe.num_shared_experts": 1,
        "moe.shared_d_ff": 24, "attention.window": 6,
    },
    "expert_choice": {"moe.router": "expert_choice", "moe.top_k": 2, "moe.balance_loss": 0.0},
    "soft": {
        "moe.router": "soft", "moe.top_k": 1, "moe.balance_loss": 0.0, "moe.z_loss": 0.0, "moe.jitter": 0.0,
        "moe.eval_capacity_factor": 0.9, "moe.num_shared_experts": 1, "moe.expert_dropout": 0.2,
    },
}  # fmt: skip
OTHER_ROUTINGS = {  # in `make test` on one mesh; those of TWO_DISPATCHERS with `einsum` on another
    "deepseek_v3": {
        "moe.router": "sigmoid", "moe.top_k": 4, "moe.expert_groups": 4, "moe.top_groups": 2,
        "moe.group_score": "top2", "moe.bias_rate": 0.001, "moe.routed_scaling": 2.5, "moe.normalize_gates": True,
    },
    "null_experts": {
        "moe.router": "top_k", "moe.top_k": 4, "moe.null_experts": 2, "moe.router_bias": True,
        "moe.temperature": 2.0, "moe.final_temperature": 0.5,
    },
    "top_p": {"moe.router": "top_p", "moe.top_k": 4, "moe.top_p": 0.5, "moe.entropy_loss": 0.01},
    "llama4": {"moe.router": "llama4", "moe.top_k": 2},
    "gemma4": {
        "moe.router": "gemma4", "moe.top_k": 4, "moe.normalize_gates": True, "moe.penalty": "simbal",
        "moe.penalty_loss": 0.01,
    },
    "longcat": {
        "moe.router": "longcat", "moe.top_k": 4, "moe.null_experts": 4, "moe.bias_rate": 0.1,
        "moe.bias_update": "longcat", "moe.target_experts": 3.0,
    },
    "deepseek_v4": {
        "moe.router": "sqrt_softplus", "moe.router_by_layer": ("hashed_sqrt_softplus", "sqrt_softplus"),
        "moe.top_k": 4, "moe.normalize_gates": True, "moe.routed_scaling": 1.5, "moe.bias_rate": 0.001,
        "moe.balance_scope": "sequence",
    },
    "quantile": {"moe.router": "sigmoid", "moe.top_k": 4, "moe.bias_rate": 1.0, "moe.bias_update": "quantile"},
    "noisy_top_k": {"moe.router": "noisy_top_k", "moe.top_k": 4, "moe.load_loss": 0.01},
    "sinkhorn": {"moe.router": "sinkhorn", "moe.top_k": 4},
    "hash": {"moe.router": "hash", "moe.top_k": 4, "moe.balance_loss": 0.0, "moe.jitter": 0.0, "moe.z_loss": 0.0},
    "random": {"moe.router": "random", "moe.top_k": 4, "moe.balance_loss": 0.0, "moe.jitter": 0.0, "moe.z_loss": 0.0},
}  # fmt: skip
PARTS_OF_MODELS = {  # what imported families are made of, all at once
    "attention_parts": {
        "moe.router": "top_k", "moe.top_k": 4, "moe.router_bias": True, "moe.expert_bias": True,
        "moe.activation": "clamped_swiglu", "attention.bias": True, "attention.out_bias": True,
        "attention.sinks": True, "attention.windows": (6, 0), "attention.qk_norm": "projection",
        "attention.rope_scaling": "yarn", "attention.rope_factor": 4.0, "attention.rope_original_length": 8,
        "model.norm_place": "post", "model.residual_scale": 0.5, "model.embedding_scale": 3.0,
        "model.logits_scale": 0.5,
    },
    "latent": {
        "moe.router": "sigmoid", "moe.top_k": 4, "moe.balance_bias": True, "moe.num_shared_experts": 1,
        "moe.shared_gate": True, "model.num_kv_heads": 4, "attention.kind": "latent", "attention.query_rank": 12,
        "attention.kv_rank": 8, "attention.rope_dim": 2, "attention.value_dim": 6,
        "attention.rope_interleaved": True,
    },
}  # fmt: skip
OTHER_ROUTINGS |= PARTS_OF_MODELS
ON_EVERY_MESH = ("top_k",)  # in `make test`, with the default dispatcher; the others on MESHES[2]
TWO_DISPATCHERS = ("top_k",)
# Of OTHER_ROUTINGS: with groups of experts, draws, a sum over the mesh of its own, other parts of models.
QUICK = ("deepseek_v3", "noisy_top_k", "quantile", "deepseek_v4", "attention_parts", "latent")
ALL_ROUTINGS = ROUTINGS | OTHER_ROUTINGS
BATCH, LENGTH = 16, 16


def make_run(mesh, routing, dispatcher, dtype, **fields):
    config = default_config()
    config.update_from_flattened_dict(
        {
            "model.num_layers": 4, "model.d_model": 16, "model.d_ff": 16, "model.num_heads": 4, "model.num_kv_heads": 2,
            "model.vocab_size": 32, "model.dtype": dtype, "moe.num_experts": 8, "moe.every": 2,
            "moe.activation": "swiglu", "moe.dispatcher": dispatcher, "moe.jitter": 0.1, "moe.group_size": LENGTH,
            "moe.capacity_factor": 0.9, "moe.z_loss": 0.001, "data.sequence_length": LENGTH, "data.batch_size": BATCH,
            "train.accumulate": 2, "train.warmup_steps": 0, "train.learning_rate": 0.01, "train.steps": 100,
            **{f"mesh.{axis}": mesh.get(axis, 1) for axis in AXES}, **ALL_ROUTINGS[routing], **fields,
        }
    )  # fmt: skip
    return resolve(config, num_devices=int(np.prod(list(mesh.values()))) if mesh else 1)


def name(mesh):
    return "-".join(f"{axis}{size}" for axis, size in mesh.items())


def make_batch() -> Batch:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 32, (BATCH, LENGTH + 1)).astype(np.int32)
    documents = np.ones((BATCH, LENGTH), np.int32)
    for row in range(0, BATCH, 3):
        documents[row, rng.integers(0, LENGTH) :] = 0  # padding at the end, of one whole sequence too
    documents[3] = 0
    return Batch(tokens[:, :-1], tokens[:, 1:], documents, documents > 0, np.zeros(BATCH, np.int32))


def train(run, routing, steps, batch=None):
    """First step's metrics and gradients, and what the last one leaves (weights, biases, loads), on the host."""
    mesh = make_mesh(run.mesh)
    model = build_model(task_of(run), mesh)
    optimizer = make_optimizer(run.train, model.decayed)
    shapes = state_shapes(model, optimizer, mesh)
    placed = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    state = jax.device_put(initial_state(routing, run.model.dtype, run.model.num_layers), placed)
    step = jax.jit(make_train_step(task_of(run), mesh, model, optimizer), out_shardings=(placed, None))
    batch = jax.device_put(make_batch() if batch is None else batch, NamedSharding(mesh, spec_of(mesh, TOKEN_AXES)))
    state, metrics = step(state, batch)
    # Adam's first moment after one step is (1 - b1) times the gradient, which is clipped after its norm was taken.
    moment = next(
        part.mu for part in jax.tree.leaves(state.opt_state, is_leaf=lambda p: hasattr(p, "mu")) if hasattr(part, "mu")
    )
    first = jax.device_get((metrics, moment))
    for _ in range(steps - 1):
        state, _ = step(state, batch)
    return first, jax.device_get((state.params, state.balance_bias, state.window))


@functools.cache
def initial_state(routing, dtype, num_layers):
    """The same for all meshes, on the host: drawing it anew on each would compile as long as the step."""
    run = make_run({}, routing, "auto", dtype, **{"model.num_layers": num_layers})
    mesh = make_mesh(run.mesh)
    model = build_model(task_of(run), mesh)
    optimizer = make_optimizer(run.train, model.decayed)
    return jax.device_get(init_state(task_of(run), state_shapes(model, optimizer, mesh), optimizer))


@functools.cache
def on_one_device(routing, dispatcher, dtype, steps):
    return train(make_run({}, routing, dispatcher, dtype), routing, steps)


def assert_equal_to(expected, actual, relative):
    def compare(a, b):
        scale = max(float(np.max(np.abs(b))), 1e-3)
        np.testing.assert_allclose(a, b, rtol=0, atol=relative * scale)

    jax.tree.map(compare, actual, expected)


def assert_same_five_steps(routing, dispatcher, mesh):
    """In float64; tokens are dropped on the way, or the capacities would not be compared."""
    with jax.enable_x64(True):
        expected = on_one_device(routing, dispatcher, "float64", 5)
        metrics, _ = expected[0]
        run = make_run(mesh, routing, dispatcher, "float64")
        drops = not ROUTERS[run.moe.router].fills_slots and dispatcher != "dropless"
        assert all(np.all((part["dropped_fraction"] > 0.01) == drops) for part in metrics.routing)
        assert_equal_to(expected, train(run, routing, 5), 1e-10)


def _is_quick(routing, dispatcher, mesh):
    """Whether `make test` holds the row; `make test-slow` holds the others."""
    if dispatcher == "dropless":  # each of its ways across the mesh is in tests/moe/test_exchanges.py
        return False
    if routing in OTHER_ROUTINGS and routing not in QUICK:
        return False
    if dispatcher != dispatchers_of(routing)[0]:
        return routing in TWO_DISPATCHERS and mesh == MESHES[3]
    return mesh == MESHES[2] or routing in ON_EVERY_MESH


def dispatchers_of(routing):
    """Those that can carry it, the default one first."""
    return ROUTERS[ALL_ROUTINGS[routing]["moe.router"]].dispatchers


def over_the_table(routings, meshes, is_quick=_is_quick):
    """Parametrizes a test by every routing, every dispatcher that can express it, and every mesh."""
    rows = [
        pytest.param(routing, dispatcher, mesh, id=f"{routing}-{dispatcher}-{name(mesh)}", marks=marks)
        for routing in routings
        for dispatcher in dispatchers_of(routing)
        for mesh in meshes
        for marks in [() if is_quick(routing, dispatcher, mesh) else pytest.mark.slow]
    ]
    return pytest.mark.parametrize(("routing", "dispatcher", "mesh"), rows)
