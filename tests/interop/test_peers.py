"""Live models of transformers against ours, in several shapes a family: logits, expert choices, gradients, and back."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from safetensors.numpy import load_file, save_file

from moe_jax.config.schema import MeshConfig
from moe_jax.inference.engine import Engine, Request
from moe_jax.inference.source import from_hf
from moe_jax.interop.export import write_folder
from moe_jax.interop.folder import open_folder
from moe_jax.interop.load import Weights
from moe_jax.interop.loaded_model import load_hf
from moe_jax.interop.quantized import dequantized
from moe_jax.interop.tensors import open_tensors
from moe_jax.moe import layer
from moe_jax.moe.losses import balance_loss, z_loss
from moe_jax.parallel.mesh import make_mesh
from moe_jax.tasks.registry import task_of
from moe_jax.train.state import Variables, build_model

pytestmark = pytest.mark.peers
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from hugging_face import (  # noqa: E402, needs torch
    DEEPSEEK_YARN,
    FAMILIES,
    LLAMA3,
    YARN,
    float64_choices,
    float64_logits,
    float64_twin,
    in_float64,
    make_model,
    save_gradients,
)

LONG = 640  # tokens: far beyond the 16 or 64 positions that scaled rotary embeddings were made for
MESH = MeshConfig(fsdp=2, expert=2, tensor=2)
SHARED = {"shared_expert_intermediate_size": 10, "moe_intermediate_size": 6}
THREE = {"num_attention_heads": 3, "hidden_size": 18}
# Shapes of each family beside that of its golden fixture: odd numbers of heads, one key head for all queries, other K
# and groups of experts, tied or not, windows shorter than the prompt, rotary embeddings with and without scaling.
SHAPES = {
    "llama": [
        {"num_key_value_heads": 1, "head_dim": 10, "tie_word_embeddings": True} | THREE,
        {"num_attention_heads": 5, "hidden_size": 15, "num_key_value_heads": 5, "head_dim": 4, "attention_bias": True},
        {"rope_parameters": LLAMA3 | {"factor": 32.0, "original_max_position_embeddings": 64}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}, "head_dim": 8},
    ],
    "mixtral": [
        {"sliding_window": None, "num_local_experts": 5, "num_experts_per_tok": 2, "num_attention_heads": 2},
        {"sliding_window": 100, "num_local_experts": 8, "num_experts_per_tok": 7, "num_key_value_heads": 4},
    ],
    "olmoe": [
        {"num_experts": 7, "num_experts_per_tok": 5, "num_attention_heads": 8, "num_key_value_heads": 1},
        {"num_experts": 3, "num_experts_per_tok": 1, "tie_word_embeddings": True},
    ],
    "flex_olmo": [{"num_experts": 5, "num_experts_per_tok": 3, "norm_topk_prob": False}],
    "qwen2_moe": [
        SHARED | {"num_experts": 5, "num_experts_per_tok": 4, "norm_topk_prob": True, "tie_word_embeddings": True},
        SHARED | {"num_experts": 4, "decoder_sparse_step": 2, "num_key_value_heads": 1, "qkv_bias": False},
    ],
    "qwen3_moe": [
        {"num_key_value_heads": 3, "mlp_only_layers": [], "norm_topk_prob": False} | THREE,
        {"decoder_sparse_step": 2, "mlp_only_layers": [], "tie_word_embeddings": False, "rope_parameters": YARN},
    ],
    "deepseek_v2": [
        {"q_lora_rank": None, "topk_method": "greedy", "n_group": 1, "topk_group": 1},
        {"n_routed_experts": 9, "n_group": 3, "topk_group": 1, "num_experts_per_tok": 3, "first_k_dense_replace": 0},
    ],
    "deepseek_v3": [
        {"q_lora_rank": None, "n_group": 1, "topk_group": 1, "norm_topk_prob": False, "n_shared_experts": 1},
        {"n_routed_experts": 12, "n_group": 3, "topk_group": 2, "num_experts_per_tok": 5, "num_key_value_heads": 3}
        | THREE,
        {"rope_parameters": DEEPSEEK_YARN | {"beta_fast": 1.0, "beta_slow": 1.0, "mscale_all_dim": 1.0}},  # Kimi K2's
        {"rope_parameters": DEEPSEEK_YARN | {"mscale_all_dim": 0.0, "factor": 40.0}, "rope_interleave": False},
    ],
    "gpt_oss": [
        {"num_experts_per_tok": 2, "num_key_value_heads": 3, "num_attention_heads": 6, "hidden_size": 24},
        {"num_local_experts": 5, "num_experts_per_tok": 4, "head_dim": 6, "sliding_window": 64},
    ],
    "glm4_moe": [
        {"use_qk_norm": False, "n_group": 4, "topk_group": 2, "num_key_value_heads": 1},
        {"attention_bias": False, "n_routed_experts": 5, "num_experts_per_tok": 3, "n_group": 1, "topk_group": 1},
    ],
    "minimax_m2": [{"rotary_dim": 8, "num_local_experts": 5, "num_key_value_heads": 1} | THREE],
    "ernie4_5_moe": [{"moe_num_shared_experts": 0, "moe_layer_start_index": 0, "moe_num_experts": 5, "moe_k": 4}],
    "dots1": [{"n_group": 4, "topk_group": 1, "num_attention_heads": 2, "num_key_value_heads": 1}],
    "granitemoe": [
        {"num_local_experts": 5, "num_experts_per_tok": 4, "tie_word_embeddings": False, "attention_bias": True},
    ],
}  # fmt: skip
CASES = [(family, i) for family in FAMILIES for i in range(-1, len(SHAPES[family]))]  # -1: the fixture's shape


def saved(family, shape, folder):
    model = make_model(family, seed=shape + 2, **(SHAPES[family][shape] if shape >= 0 else {}))
    model.save_pretrained(folder)
    return model


def prompt(seed=0, rows=2, length=LONG):
    return np.random.RandomState(seed).randint(0, 40, (rows, length))


def experts_of(model, ids):
    """The expert choices of our model, sorted, as [M, B * L, K]; on one device."""
    structure = build_model(task_of(model.run), model.mesh)
    replicated = PartitionSpec()

    def on_device(params, biases, ids):
        decoder = structure.bind(Variables(jnp.int32(0), params, biases))
        return [sums["expert"] for sums in decoder.logits(ids, jnp.ones_like(ids))[1]]

    specs = (structure.specs, replicated, replicated)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer, "observe", lambda moe, routing, kept, sequences: {"expert": routing.expert.astype(float)})
        mapped = jax.shard_map(on_device, mesh=model.mesh, in_specs=specs, out_specs=replicated, check_vma=False)
        found = jax.jit(mapped)(model.weights.params, model.weights.balance_bias, jnp.asarray(ids, jnp.int32))
    return [np.sort(np.asarray(e).reshape(-1, ids.size, e.shape[-1]), axis=-1) for e in found]


def test_every_family_has_shapes():
    assert set(SHAPES) == set(FAMILIES)


@pytest.mark.parametrize("family, shape", CASES)
def test_logits_and_choices(family, shape, tmp_path):
    theirs = saved(family, shape, tmp_path / "hf")
    ids = prompt()
    expected = float64_logits(theirs, ids)
    with jax.enable_x64(True):
        model = load_hf(tmp_path / "hf", make_mesh(MeshConfig()), dtype="float64")
        np.testing.assert_allclose(model(ids), expected, rtol=0, atol=1e-9)
        chosen = [experts for segment in experts_of(model, ids) for experts in segment]
        for layer_index, (ours, of_theirs) in enumerate(zip(chosen, float64_choices(theirs, ids), strict=True)):
            np.testing.assert_array_equal(ours, of_theirs, err_msg=f"MoE layer {layer_index}")
    np.testing.assert_allclose(load_hf(tmp_path / "hf")(ids), expected, rtol=0, atol=1e-4)


def test_a_prompt_of_one_token_overloads_its_experts_and_drops_none(tmp_path):
    theirs = saved("mixtral", -1, tmp_path / "hf")
    ids = np.full((1, 64), 7)
    with jax.enable_x64(True):
        ours = load_hf(tmp_path / "hf", dtype="float64")(ids)
        np.testing.assert_allclose(ours, float64_logits(theirs, ids), rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", ["llama", "mixtral", "deepseek_v2", "deepseek_v3", "gpt_oss", "qwen2_moe"])
def test_long_prompts_on_eight_devices(family, tmp_path):
    theirs = saved(family, -1, tmp_path / "hf")
    ids = prompt(rows=4)
    with jax.enable_x64(True):
        ours = load_hf(tmp_path / "hf", make_mesh(MESH), dtype="float64")(ids)
        np.testing.assert_allclose(ours, float64_logits(theirs, ids), rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_is_theirs(family, tmp_path):
    """Prompts of unequal lengths in fewer places than there are prompts, through windows, to the last token."""
    model = make_model(family)
    model.save_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 40, (1, length)) for length in (1, 30, 7, 12)]
    with in_float64(), torch.no_grad():
        twin = float64_twin(model)
        tensors = [torch.as_tensor(ids) for ids in prompts]
        settings = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
        whole = [twin.generate(ids, attention_mask=torch.ones_like(ids), **settings) for ids in tensors]
        expected = [one[0, ids.shape[1] :].tolist() for one, ids in zip(whole, prompts, strict=True)]
    with jax.enable_x64(True):
        run, mesh, weights, text = from_hf(tmp_path, {}, "float64")
        engine = Engine(run, mesh, weights, text, places=2, length=64, piece=16)
        requests = [Request(tuple(map(int, ids[0])), 20, name=name) for name, ids in enumerate(prompts)]
        answers = sorted(engine.answers(requests), key=lambda answer: answer.request.name)
    assert [answer.tokens for answer in answers] == expected


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "gpt_oss"])
def test_every_gradient(family, tmp_path):
    """Of the summed cross-entropy of random targets, carried back into their names and layouts by the export."""
    theirs = saved(family, -1, tmp_path / "hf")
    ids, targets = prompt(0, 2, 48), prompt(1, 2, 48)
    with jax.enable_x64(True):
        model = load_hf(tmp_path / "hf", dtype="float64")
        structure = build_model(task_of(model.run), model.mesh)
        replicated = PartitionSpec()

        def on_device(params, biases, ids, targets):
            decoder = structure.bind(Variables(jnp.int32(0), params, biases))
            valid = jnp.ones_like(ids)
            nll, _ = decoder.negative_log_likelihood(ids, targets, valid, valid > 0, jnp.int32(0), None, train=False)
            return jnp.sum(nll)

        specs = (structure.specs, replicated, replicated, replicated)
        mapped = jax.shard_map(on_device, mesh=model.mesh, in_specs=specs, out_specs=replicated, check_vma=False)
        biases = model.weights.balance_bias
        arrays = [jnp.asarray(a, jnp.int32) for a in (ids, targets)]
        gradients = jax.jit(jax.grad(mapped))(model.weights.params, biases, *arrays)
        known = open_folder(tmp_path / "hf").family
        write_folder(tmp_path / "grads", model.run, Weights(gradients, biases), known, "F64")
    save_gradients(theirs, ids, targets, tmp_path / "expected")
    ours, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("grads", "expected"))
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        assert np.abs(gradient).max() > 0 or ".experts." in name, f"{name}: nothing is compared with a gradient of zero"
        np.testing.assert_allclose(ours[name], gradient, rtol=1e-9, atol=1e-11, err_msg=name)


def test_no_expert_of_a_masked_group_is_chosen(tmp_path):
    """Where every score plus its balance bias is negative, a mask of zeros would let experts of masked groups win.

    Older releases of transformers (its issue 45440) did that. Ours masks with minus infinity, as the paper says
    (DeepSeek-V3, section 2.1.2), and so does the release that is compared with here.
    """
    theirs = make_model("deepseek_v3", seed=9)
    with torch.no_grad():
        for name, buffer in theirs.named_buffers():
            if "correction_bias" in name:
                buffer.sub_(3)
    theirs.save_pretrained(tmp_path / "hf")
    ids = prompt(length=64)
    with jax.enable_x64(True):
        model = load_hf(tmp_path / "hf", dtype="float64")
        chosen = [experts for segment in experts_of(model, ids) for experts in segment]
        np.testing.assert_allclose(model(ids), float64_logits(theirs, ids), rtol=0, atol=1e-9)
    for ours, of_theirs in zip(chosen, float64_choices(theirs, ids), strict=True):
        np.testing.assert_array_equal(ours, of_theirs)
        assert max(len(set(row)) for row in ours // 2) <= 2  # of four groups of two experts, two are chosen


@pytest.mark.parametrize("family", FAMILIES)
def test_theirs_loads_what_ours_writes(family, tmp_path):
    """With their own config.json and with one that is written anew, from weights and shapes alone."""
    theirs = saved(family, -1, tmp_path / "hf")
    model, opened = load_hf(tmp_path / "hf"), open_folder(tmp_path / "hf")
    write_folder(tmp_path / "same", model.run, model.weights, opened.family, "F32", described=opened.described)
    write_folder(tmp_path / "anew", model.run, model.weights, opened.family, "F32")
    ids = prompt(length=96)
    expected = float64_logits(theirs, ids)
    for name in ("same", "anew"):
        loaded, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
        loaded.config._attn_implementation = loaded.config._experts_implementation = "eager"
        np.testing.assert_allclose(float64_logits(loaded.eval(), ids), expected, rtol=0, atol=1e-6, err_msg=name)


def test_mxfp4_means_what_transformers_decodes(tmp_path):
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    random = np.random.RandomState(0)
    blocks = random.randint(0, 256, (3, 10, 4, 16)).astype(np.uint8)
    scales = random.randint(110, 140, (3, 10, 4)).astype(np.uint8)
    expected = convert_moe_packed_tensors(torch.as_tensor(blocks), torch.as_tensor(scales), dtype=torch.float32)
    save_file({"w_blocks": blocks, "w_scales": scales}, tmp_path / "model.safetensors")
    np.testing.assert_array_equal(dequantized(open_tensors(tmp_path))["w"].read(), expected.numpy())


def sums_of(logits, top_k):
    """What balance losses are made of, of router logits [layers, tokens, E]."""
    probabilities = jax.nn.softmax(logits, axis=-1)
    _, chosen = jax.lax.top_k(logits, top_k)
    choices = jax.nn.one_hot(chosen, logits.shape[-1]).sum((-3, -2))
    tokens = jnp.full(len(logits), logits.shape[1], float)
    return {"choices": choices, "probability": probabilities.sum(-2), "tokens": tokens}


def test_balance_losses_translate_as_the_documentation_says():
    """docs/models.md, Losses: K times ours for one layer; over several layers theirs pools the sums first."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    experts, top_k = 6, 3
    logits = np.random.RandomState(0).randn(4, 50, experts).astype(np.float32) * 2
    theirs = lambda part: float(load_balancing_loss_func(tuple(map(torch.as_tensor, part)), experts, top_k))
    sums = sums_of(jnp.asarray(logits), top_k)
    ours = balance_loss(sums)
    for layer_logits, one in zip(logits, ours, strict=True):
        np.testing.assert_allclose(theirs(layer_logits[None]), top_k * one, rtol=1e-6)
    pooled = balance_loss({name: value.sum(0) for name, value in sums.items()})
    np.testing.assert_allclose(theirs(logits), top_k * pooled, rtol=1e-6)
    assert abs(pooled - ours.mean()) > 1e-3  # layers that are unbalanced in opposite ways even out there


def test_switch_losses_translate_as_the_documentation_says():
    from transformers.models.switch_transformers import modeling_switch_transformers as switch

    logits = np.random.RandomState(1).randn(3, 20, 5).astype(np.float32)  # sequences, tokens, experts
    probabilities = torch.softmax(torch.as_tensor(logits), -1)
    theirs = float(switch.load_balancing_loss_func(probabilities, probabilities.argmax(-1)))
    np.testing.assert_allclose(theirs, balance_loss(sums_of(jnp.asarray(logits), 1)).mean(), rtol=1e-6)
    z = float(switch.router_z_loss_func(torch.as_tensor(logits)))
    squared = jnp.square(jax.nn.logsumexp(logits, axis=-1)).sum()
    np.testing.assert_allclose(z, z_loss({"squared_logsumexp": squared, "tokens": jnp.float32(60)}), rtol=1e-6)


def test_the_story_of_the_documentation(tmp_path):
    """The commands of docs/models.md, as they stand there."""
    root = Path(__file__).parents[2]
    text = (root / "docs" / "models.md").read_text(encoding="utf-8")
    [story] = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"REPO": str(root), "PYTHONPATH": str(root), "PATH": path, "XLA_FLAGS": ""}
    done = subprocess.run(["bash", "-ec", story], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    [before, after] = map(float, re.findall(r"^ +all +([\d.]+)", done.stdout, flags=re.MULTILINE))
    assert before > 5 and after < 1.0
    [difference] = re.findall(r"largest difference of logits: (\S+)", done.stdout)
    assert float(difference) < 1e-4
    assert "transformers goes on with: edcba<end>" in done.stdout
