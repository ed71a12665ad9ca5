"""Prefill and decoding give the logits of the whole forward pass: every family, every router, on meshes."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.config import default_config
from moe_jax.config.rules import ConfigError
from moe_jax.config.schema import MeshConfig
from moe_jax.inference.dense_twins import drawn_parameters
from moe_jax.inference.sampling import GREEDY, Settings
from moe_jax.inference.source import check_routers
from moe_jax.inference.steps import Steps, Turn, empty_caches
from moe_jax.inference.weights import place
from moe_jax.interop.families import FAMILIES
from moe_jax.interop.load import Weights
from moe_jax.interop.loaded_model import LoadedModel, load_hf
from moe_jax.moe.routers import ROUTERS
from moe_jax.parallel.mesh import make_mesh
from moe_jax.resolve import resolve
from moe_jax.tasks.registry import task_of
from moe_jax.train.state import build_model

GOLDEN = Path(__file__).parents[1] / "interop" / "golden"
ONE, EIGHT = MeshConfig(), MeshConfig(fsdp=2, expert=2, tensor=2)
B, PIECE = 4, 4
TURNS = (4, 3, 1, 1, 4, 2, 1, 1, 4, 1, 1)  # a prompt in pieces, tokens, more of a prompt; windows of 5 to 7 go round
CHOSEN, GROUPED = 100.0, 0.0  # choices an expert up to which they are computed one after another
# In `make test`; the others in `make test-slow`. A window; compressed caches; sinks, biases and windows that alternate.
QUICK, QUICK_ROUTERS = ("mixtral", "deepseek_v3", "gpt_oss"), ("top_k", "switch", "random", "longcat", "soft")


def decoded(model, ids, few, form="", reach=False):
    """The logits of `ids` [B, L] by turns, in caches that begin empty; and what the experts had to do, by turn.

    `reach`: read only as much of the caches as there is.
    """
    weights = place(model.run, model.mesh, jnp.int32(0), *model.weights, form)
    steps = Steps(model.run, model.mesh, weights, few)
    caches = empty_caches(model.run, model.mesh, B, ids.shape[1], PIECE)
    settings, logits, choices, at = Settings.of([GREEDY] * B), [], [], 0
    for number in TURNS:
        piece = np.zeros((B, PIECE if number > 1 else 1), np.int32)
        piece[:, :number] = ids[:, at : at + number]
        piece[:, number:] = 7  # padding, which nothing may see
        turn = Turn(jnp.asarray(piece), jnp.full(B, at, jnp.int32), jnp.full(B, number, jnp.int32))
        caches, outcome = steps.decode(caches, turn, settings, True, at + number if reach else 0, all_logits=True)
        logits.append(np.asarray(outcome.logits)[:, :number])
        choices.append([np.asarray(layer) for layer in outcome.choices])
        at += number
    return np.concatenate(logits, axis=1), choices


def golden(family):
    with np.load(GOLDEN / family / "logits.npz") as file:
        rows = np.arange(B) % len(file["ids"])
        return file["ids"][rows, : sum(TURNS)], file["logits"][rows, : sum(TURNS)]


@pytest.mark.parametrize(
    ("family", "mesh", "few"),
    [
        pytest.param(family, mesh, few, marks=[] if quick else pytest.mark.slow, id=f"{family}-{name}")
        for family in FAMILIES
        for name, mesh, few, quick in (
            ("one device, chosen", ONE, CHOSEN, family in QUICK),
            ("eight devices, grouped", EIGHT, GROUPED, family in QUICK),
            ("eight devices, chosen", EIGHT, CHOSEN, family == "mixtral"),
        )
    ],
)
def test_every_family_in_float64_is_what_hugging_face_computes(family, mesh, few):
    ids, expected = golden(family)
    with jax.enable_x64(True):
        logits, _ = decoded(load_hf(GOLDEN / family, make_mesh(mesh), dtype="float64"), ids, few)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-12)


def test_float32():
    ids, expected = golden("qwen3_moe")
    logits, _ = decoded(load_hf(GOLDEN / "qwen3_moe"), ids, CHOSEN)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


@functools.cache
def random_model(router, mesh=ONE):
    """Of two layers, all fields of the router as it wants them, on the mesh, in float64."""
    kind, config = ROUTERS[router], default_config()
    fields = {
        "model.num_layers": 2, "model.d_model": 16, "model.d_ff": 24, "model.num_heads": 4, "model.num_kv_heads": 2,
        "model.vocab_size": 40, "model.dtype": "float64", "moe.num_experts": 4, "moe.every": 2,
        "moe.router": router, "moe.top_k": kind.required_top_k or max(2, kind.least_top_k),
        "moe.balance_loss": 0.0, "moe.capacity_factor": 8.0, "moe.eval_capacity_factor": 8.0,
        "data.batch_size": 8, "data.sequence_length": 16, "moe.group_size": 16,
        **{f"mesh.{axis}": getattr(mesh, axis) for axis in ("data", "fsdp", "expert", "tensor")},
        **{f"moe.{name}": value for name, value in kind.fixed_fields.items()},
    }  # fmt: skip
    config.update_from_flattened_dict(fields)
    run = resolve(config, 8 if mesh == EIGHT else 1)
    on = make_mesh(run.mesh)
    params, biases = drawn_parameters(run)
    return LoadedModel(run, on, build_model(task_of(run), on), Weights(params, biases))


def can_decode(router):
    try:
        check_routers(random_model(router).run)
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize(
    "router", [pytest.param(name, marks=[] if name in QUICK_ROUTERS else pytest.mark.slow) for name in ROUTERS]
)
def test_every_router_that_chooses_a_token_at_a_time(router):
    with jax.enable_x64(True):
        if not can_decode(router):
            assert not ROUTERS[router].causal_in_evaluation or "dropless" not in ROUTERS[router].dispatchers
            return
        model = random_model(router)
        ids = np.random.default_rng(0).integers(0, 40, (B, sum(TURNS)))
        logits, choices = decoded(model, ids, GROUPED)
        np.testing.assert_allclose(logits, model(ids), rtol=0, atol=1e-9)
    tokens = [sum(layer.sum() for layer in turn) for turn in choices]
    assert tokens[0] >= 2 * tokens[3] > 0  # four tokens of each sequence, and one


def test_what_looks_ahead_is_refused():
    with jax.enable_x64(True):
        assert can_decode("top_k") and not can_decode("expert_choice") and not can_decode("soft")
        with pytest.raises(ConfigError, match=r"^moe\.router='soft' chooses for a token by those behind it"):
            check_routers(random_model("soft").run)


@pytest.mark.parametrize("form", ["", "int8"])
def test_experts_in_a_stack_as_accelerators_have_them(form, monkeypatch):
    """There a chosen expert is an index into the stack, and not a branch."""
    ids, _ = golden("gpt_oss")
    with jax.enable_x64(True):
        model = load_hf(GOLDEN / "gpt_oss", dtype="float64")
        expected, _ = decoded(model, ids, CHOSEN, form)
        monkeypatch.setattr("moe_jax.inference.weights._Placing._apart", lambda self: False)
        logits, _ = decoded(model, ids, CHOSEN, form)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "gpt_oss"])
def test_a_part_of_the_caches_is_enough(family):
    ids, expected = golden(family)
    with jax.enable_x64(True):
        logits, _ = decoded(load_hf(GOLDEN / family, dtype="float64"), ids, CHOSEN, reach=True)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-12)


def test_int8_on_a_mesh_is_int8_on_a_device():
    """Scales are cut as their matrices are; routers and norms keep their precision."""
    ids, _ = golden("mixtral")
    with jax.enable_x64(True):
        found = [
            decoded(load_hf(GOLDEN / "mixtral", mesh=make_mesh(mesh), dtype="float64"), ids, GROUPED, "int8")[0]
            for mesh in (ONE, EIGHT)
        ]
        np.testing.assert_allclose(*found, rtol=0, atol=1e-12)
        model = load_hf(GOLDEN / "mixtral", dtype="float64")
        weights = place(model.run, model.mesh, jnp.int32(0), *model.weights, "int8")
    router = jax.tree.leaves(weights.layers[0][0]["moe"]["router"])
    assert {leaf.dtype for leaf in router} == {jnp.dtype("float64")}


def test_an_expert_is_given_what_its_gate_leaves_of_a_token():
    """Gates that scale the input of an expert, not its output, one choice after another."""
    with jax.enable_x64(True):
        model = random_model("llama4")
        ids = np.random.default_rng(0).integers(0, 40, (B, sum(TURNS)))
        np.testing.assert_allclose(decoded(model, ids, CHOSEN)[0], model(ids), rtol=0, atol=1e-9)


def test_int8_is_near():
    """The divergence from what float32 predicts, in nats, is small beside the entropy of the predictions."""
    ids, _ = golden("mixtral")
    model = load_hf(GOLDEN / "mixtral")
    exact, rounded = (jax.nn.log_softmax(decoded(model, ids, CHOSEN, form)[0]) for form in ("", "int8"))
    divergence = np.mean(np.sum(np.exp(exact) * (exact - rounded), axis=-1))
    entropy = -np.mean(np.sum(np.exp(exact) * exact, axis=-1))
    assert 0 < divergence < 2e-3 * entropy
