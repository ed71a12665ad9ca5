import dataclasses
import re
from decimal import Decimal

import jax
import numpy as np
import pytest
from configurations import CONFIGS, FILES, load, run_of

from moe_jax.config.layers import segments
from moe_jax.config.schema import MeshConfig
from moe_jax.moe.feed_forward import feed_forward_params
from moe_jax.parallel.mesh import make_mesh
from moe_jax.resolve.counting import causal_flops_per_token, count
from moe_jax.tasks.registry import task_of
from moe_jax.train.state import Variables, build_model, num_params
from moe_jax.train.step import make_eval_step


def abstract_model(run):
    """The real model, shapes only."""
    return build_model(task_of(run), make_mesh(MeshConfig()))


def real_counts(run):
    """Total, active and embedding parameters, and FLOPs a token, by the names of the real tree."""
    total = active = embedding = products = 0
    model = abstract_model(run)
    matrices = jax.tree.leaves(model.decayed)
    for (path, leaf), is_matrix in zip(jax.tree.leaves_with_path(model.shapes), matrices, strict=True):
        names = [str(getattr(key, "key", key)) for key in path]
        size = int(np.prod(leaf.shape, dtype=object))
        total += size
        if "experts" in names:
            moe = segments(run)[path[1].key].moe
            size = size * moe.top_k // moe.num_experts
        active += size
        embedding += size if names[0] in ("embedding", "head") else 0
        looked_up = names[0] == "embedding" and not run.model.tie_embeddings
        times = 3 if names[-1] == "phi" else 1  # phi: for its logits, into slots, and out
        products += 0 if looked_up or not is_matrix else size * times
    attention, head_dim = run.attention, run.model.head_dim
    sizes = {"grouped_query": 2 * head_dim, "latent": head_dim + attention.rope_dim + (attention.value_dim or head_dim)}
    scores = run.data.sequence_length * run.model.num_heads * sizes[attention.kind] * run.model.num_layers
    return total, active, embedding, 6 * (products + scores)


MOE = {"moe.num_experts": 4, "moe.router": "top_k", "moe.top_k": 3}
EXPERT_CHOICE = {"moe.num_experts": 4, "moe.router": "expert_choice", "moe.top_k": 2, "moe.balance_loss": 0.0}
SOFT = {**EXPERT_CHOICE, "moe.router": "soft"}
LATENT = {"attention.kind": "latent", "attention.kv_rank": 8, "attention.rope_dim": 2}
SHAPES = {
    "dense": {},
    "dense gated": {"model.activation": "swiglu"},
    "tied": {"model.tie_embeddings": True},
    "grouped queries": {"model.num_kv_heads": 2},
    "wide heads": {"model.head_dim": 32, "model.num_kv_heads": 1},
    "every layer": MOE,
    "top-1": {"moe.num_experts": 4},
    "every second and a rest": {**MOE, "model.num_layers": 5, "moe.every": 2},
    "first dense": {**MOE, "model.num_layers": 4, "moe.first_dense": 2},
    "router bias": {**MOE, "moe.router_bias": True},
    "null experts": {**MOE, "moe.null_experts": 2, "moe.router_bias": True, "moe.bias_rate": 0.001},
    "sigmoid": {**MOE, "moe.router": "sigmoid"},
    "parts of attention": {
        **MOE,
        "attention.bias": True,
        "attention.out_bias": True,
        "attention.sinks": True,
        "model.num_kv_heads": 2,
        "attention.qk_norm": "projection",
    },
    "norm of heads": {**MOE, "attention.qk_norm": "head", "model.num_kv_heads": 2},
    "latent attention": {**MOE, **LATENT},
    "latent attention, compressed queries": {**MOE, **LATENT, "attention.query_rank": 12, "attention.value_dim": 6},
    "biases and a gate": {
        **MOE,
        "moe.expert_bias": True,
        "model.activation": "swiglu",
        "moe.num_shared_experts": 2,
        "moe.shared_gate": True,
        "moe.balance_bias": True,
    },
    "noise": {**MOE, "moe.router": "noisy_top_k"},
    "sinkhorn": {**MOE, "moe.router": "sinkhorn"},
    "scales of experts": {**MOE, "moe.router": "gemma4", "moe.null_experts": 1},
    "hash": {**MOE, "moe.router": "hash", "moe.balance_loss": 0.0},
    "random": {**MOE, "moe.router": "random", "moe.balance_loss": 0.0, "moe.num_shared_experts": 1},
    "shared experts": {**MOE, "moe.num_shared_experts": 2},
    "shared experts of their own size": {**MOE, "moe.num_shared_experts": 2, "moe.shared_d_ff": 40},
    "expert size": {**MOE, "moe.d_ff": 24},
    "fine-grained experts": {**MOE, "moe.d_ff": 24, "moe.fine_grained": 3, "moe.num_shared_experts": 1},
    "layers of their own": {
        **MOE,
        "model.num_layers": 7,
        "moe.first_dense": 1,
        "moe.every": 2,
        "moe.num_experts_by_layer": (2, 4, 4),
        "moe.top_k_by_layer": (1, 2, 3),
    },
    "gated experts": {**MOE, "model.num_layers": 4, "moe.every": 2, "moe.activation": "geglu"},
    "expert choice": {**EXPERT_CHOICE, "moe.capacity_factor": 1.0},
    "soft": {**SOFT, "moe.capacity_factor": 1.0, "moe.eval_capacity_factor": 1.0},
    "gated dense layers": {
        **MOE,
        "model.num_layers": 4,
        "moe.every": 2,
        "model.activation": "geglu",
        "moe.activation": "gelu",
    },
    "everything": {
        **MOE,
        "model.num_layers": 6,
        "model.activation": "swiglu",
        "model.num_kv_heads": 1,
        "model.tie_embeddings": True,
        "moe.first_dense": 1,
        "moe.every": 2,
        "moe.d_ff": 40,
        "moe.num_shared_experts": 3,
    },
}


@pytest.mark.parametrize("fields", SHAPES.values(), ids=SHAPES)
def test_counts_are_those_of_the_real_tree(fields):
    run = run_of(fields)
    assert tuple(count(run)) == real_counts(run)


def test_a_dense_model_is_all_active():
    counts = count(run_of({}))
    assert counts.total_params == counts.active_params


def test_feed_forward_by_hand():
    assert feed_forward_params(4, 8, "relu") == feed_forward_params(4, 8, "gelu") == 64
    assert feed_forward_params(4, 8, "swiglu") == feed_forward_params(4, 8, "geglu") == 96


# Total, active, and how far a count may be from each; None: it is published to the last digit printed. Where more than
# 0.5% are allowed, the comment says why.
PUBLISHED = {
    "glam_0b1_64e.py": ("1.9B", None, "145M", 0.06),  # what is counted is not known: see its header
    "glam_1b7_64e.py": ("27B", None, "1.879B", None),
    "glam_8b_64e.py": ("143B", None, "9.8B", None),
    "glam_64b_64e.py": ("1.2T", None, "96.6B", None),
    "mixtral_8x7b.py": ("46.7B", None, "12.9B", None),
    "models/llama_3_1_405b.py": ("405B", 0.005, "405B", 0.005),
    "models/mixtral_8x22b.py": ("141B", None, "39B", None),
    "models/olmoe_1b_7b.py": ("6.9B", None, "1.3B", None),
    "models/qwen1_5_moe_a2_7b.py": ("14.3B", None, "2.7B", None),
    "models/qwen3_30b_a3b.py": ("30.5B", None, "3.3B", 0.02),  # 3.35, printed without rounding
    "models/qwen3_235b_a22b.py": ("235B", None, "22B", None),
    "models/deepseek_v2.py": ("236B", None, "21B", None),
    "models/deepseek_v3.py": ("671B", None, "37B", None),
    # The published total has an MoE layer in place of the dense one: see the test below. The rest is not known.
    "models/kimi_k2.py": ("1.04T", 0.015, "32.6B", 0.01),
    "models/gpt_oss_20b.py": ("20.9B", None, "3.6B", None),
    "models/gpt_oss_120b.py": ("116.8B", None, "5.1B", None),
    "models/gpt4_described.py": ("1.8T", None, "280B", None),
}
LOOKUP_LEFT_OUT = tuple(f"models/{name}.py" for name in ("gpt_oss_20b", "gpt_oss_120b", "deepseek_v3"))  # of active
TWO_STACKS = {  # Switch's published totals are of an encoder and a decoder
    "models/switch_base.py": ("7B", None),
    "models/switch_large.py": ("26B", 0.045),  # of experts of another shape: see its header
    "models/switch_xxl.py": ("395B", None),
    "models/switch_c.py": ("1571B", None),
}
# Training GFLOPs a token that others print for their systems (Megatron-Bridge, MaxText, NeMo), at these lengths.
PUBLISHED_FLOPS = {
    ("models/deepseek_v3.py", 4096): (249.0, 250.4),
    ("models/deepseek_v3.py", 8192): (281.2, 281.2),
    ("models/kimi_k2.py", 4096): (204.5, 204.5),
    ("models/qwen3_235b_a22b.py", 4096): (147.8, 148.3),
    ("models/qwen3_30b_a3b.py", 4096): (23.0, 23.0),
    ("models/gpt_oss_120b.py", 4096): (32.6, 32.6),
    ("models/gpt_oss_120b.py", 8192): (34.5, 34.5),
}
PUBLISHED_FULL_FLOPS = {"mixtral_8x7b.py": 82.9, "models/mixtral_8x22b.py": 250.7}  # at 4,096, scores not halved


def within(counted, published, tolerance):
    """Whether `counted` rounds to `published`, or lies within the relative tolerance."""
    unit = Decimal({"M": 10**6, "B": 10**9, "T": 10**12}[published[-1]])
    figure = Decimal(published[:-1])
    if tolerance is None:
        return (counted / unit).quantize(figure) == figure
    return abs(counted / unit / figure - 1) <= tolerance


@pytest.mark.parametrize("name", PUBLISHED)
def test_full_shape(name):
    header, run = load(name)
    total, total_tolerance, active, active_tolerance = PUBLISHED[name]
    counts = count(run)
    assert within(counts.total_params, total, total_tolerance)
    lookup = counts.embedding_params // 2 if name in LOOKUP_LEFT_OUT else 0
    assert within(counts.active_params - lookup, active, active_tolerance)
    assert re.search(rf"published +{re.escape(total)} +{re.escape(active)}\n", header)
    assert re.search(rf"counted +{counts.total_params:,} +{counts.active_params:,}\n", header)
    assert num_params(abstract_model(run).shapes) == counts.total_params


@pytest.mark.parametrize("name", TWO_STACKS)
def test_full_shape_of_one_of_two_stacks(name):
    header, run = load(name)
    total, tolerance = TWO_STACKS[name]
    counts, model = count(run), run.model
    twice = count(dataclasses.replace(run, model=dataclasses.replace(model, num_layers=2 * model.num_layers)))
    cross_attention = 4 * model.d_model * model.num_heads * model.head_dim + model.d_model
    both = twice.total_params + model.num_layers * cross_attention
    assert within(both, total, tolerance)
    assert re.search(rf"published +{re.escape(total)} +-\n", header)
    assert re.search(rf"counted +{counts.total_params:,} +{counts.active_params:,}\n", header)
    said = re.search(r"two stacks and cross-attention are ([\d,.]+B)", header)
    assert said and within(both, said[1].replace(",", ""), None)
    assert num_params(abstract_model(run).shapes) == counts.total_params


def test_kimi_k2_is_published_with_an_moe_layer_more():
    run = load("models/kimi_k2.py").run
    counts = count(dataclasses.replace(run, moe=dataclasses.replace(run.moe, first_dense=0)))
    assert within(counts.total_params, "1.04T", None)
    assert within(counts.total_params, "1043.0B", None)


def test_every_full_shape_has_a_row():
    files = {name for name in FILES if name.startswith(("models/", "glam", "mixtral"))} - {"models/base.py"}
    assert files == {*PUBLISHED, *TWO_STACKS}


def at_length(name, length):
    run = load(name).run
    return dataclasses.replace(run, data=dataclasses.replace(run.data, sequence_length=length))


@pytest.mark.parametrize(("name", "length"), PUBLISHED_FLOPS)
def test_published_flops_of_causal_attention(name, length):
    low, high = PUBLISHED_FLOPS[name, length]
    assert 0.99 * low < causal_flops_per_token(at_length(name, length)) / 1e9 < 1.01 * high


@pytest.mark.parametrize("name", PUBLISHED_FULL_FLOPS)
def test_published_flops_of_whole_attention(name):
    assert count(at_length(name, 4096)).flops_per_token / 1e9 == pytest.approx(PUBLISHED_FULL_FLOPS[name], rel=0.001)


def test_causal_attention_needs_half_of_its_scores():
    """Two layers of four heads of 16 dimensions over 128 positions: 12 L H N s FLOPs of scores in all."""
    run = run_of({"data.sequence_length": 128})
    assert count(run).flops_per_token - causal_flops_per_token(run) == 12 * 2 * 64 * 128 // 2


def test_router_weights_by_hand():
    """Two MoE layers, d_model 64, four experts: what the router adds to parameters and to FLOPs, 6 a weight."""
    without = count(run_of({**MOE, "moe.router": "hash", "moe.balance_loss": 0.0}))
    for fields, weights, biases in (
        ({}, 64 * 4, 0),
        ({"moe.router_bias": True}, 64 * 4, 4),
        ({"moe.null_experts": 2, "moe.router_bias": True}, 64 * 6, 6),
        ({"moe.router": "noisy_top_k"}, 2 * 64 * 4, 0),
    ):
        counts = count(run_of({**MOE, **fields}))
        assert counts.total_params - without.total_params == 2 * (weights + biases)
        assert counts.active_params - without.active_params == 2 * (weights + biases)
        assert counts.flops_per_token - without.flops_per_token == 6 * 2 * weights


def test_rounding_is_not_lenient():
    assert within(143_400_000_000, "143B", None)
    assert not within(143_600_000_000, "143B", None)
    assert not within(154_000_000, "145M", 0.06)


def test_experts_that_choose_are_active_as_often_as_they_have_slots():
    dense, sparse = (count(run_of({**EXPERT_CHOICE, "moe.capacity_factor": f})).active_params for f in (1.0, 1.5))
    expert = feed_forward_params(64, 256, "relu")
    assert sparse - dense == 2 * 1 * expert  # 2 layers, 3 experts a token and not 2


FLOPS = {
    "dense": {"model.activation": "geglu", "model.num_kv_heads": 2, "model.head_dim": 32},
    "moe": {
        "model.activation": "geglu",
        "model.tie_embeddings": True,
        "moe.num_experts": 4,
        "moe.top_k": 2,
        "moe.every": 2,
        "moe.router": "gshard",
        "moe.activation": "gelu",
        "moe.d_ff": 256,
        "moe.num_shared_experts": 1,
        "moe.eval_capacity_factor": 1.0,
        "moe.group_size": 128,
    },
    "expert choice": {**EXPERT_CHOICE, "moe.every": 2, "moe.eval_capacity_factor": 1.0, "moe.capacity_factor": 1.0},
    "soft": {**SOFT, "moe.every": 2, "moe.eval_capacity_factor": 1.0, "moe.capacity_factor": 1.0},
}


@pytest.mark.parametrize("fields", FLOPS.values(), ids=FLOPS)
def test_flops_are_those_that_xla_counts(fields, tiny):
    """Of a forward pass: a third. XLA adds what is no matrix product (softmax, norms, rotary positions): at most 2%.

    With a capacity factor of 1 there are as many slots as choices, C * E = K * T, so every expert FLOP that is executed
    is one of the model's. Each segment is one repeat of its pattern: XLA counts a loop's body once.
    """
    batch, length, vocab = 2, 64, 768
    fields = {"model.d_model": 256, "model.d_ff": 512, "model.vocab_size": vocab, "data.batch_size": batch, **fields}
    fields |= {name: tiny[name] for name in ("data.source", "data.cache_dir", "data.holdout_fraction")}
    layers = 2 if "moe.every" in fields else 1
    run = run_of(
        {**fields, "model.num_layers": layers, "data.sequence_length": length, "moe.group_size": batch * length}
    )
    task, mesh = task_of(run), make_mesh(run.mesh)
    model = build_model(task, mesh)
    step = make_eval_step(mesh, model, task.open())
    variables = Variables(jax.ShapeDtypeStruct((), np.int32), model.shapes, model.balance_bias)
    compiled = jax.jit(step).lower(variables, task.batch_shapes()).compile()
    forward = count(run).flops_per_token / 3 * batch * length
    assert 1 <= compiled.cost_analysis()["flops"] / forward <= 1.02


def line_of(name):
    """The row of docs/models.md about one of the full-size configurations."""
    published = PUBLISHED.get(name) or (*TWO_STACKS[name], "", None)
    counts, causal = count(at_length(name, 4096)), causal_flops_per_token(at_length(name, 4096))
    stacks = " in two stacks" if name in TWO_STACKS else ""
    figures = [f"{counts.total_params / 1e9:,.1f}B", f"{counts.active_params / 1e9:.2f}B", f"{causal / 1e9:,.1f}"]
    return f"| `{name}` | {' | '.join(figures)} | {published[0]}{stacks} | {published[2]} |"


@pytest.mark.parametrize("name", [*PUBLISHED, *TWO_STACKS])
def test_the_documentation_has_these_counts(name):
    assert line_of(name) in (CONFIGS.parent / "docs" / "models.md").read_text(encoding="utf-8").splitlines()
