import dataclasses
import json
import re

import pytest
from configurations import FILES, MOE, SOFT, load, nest, refusal, run_of

from moe_jax.config.schema import RunConfig, default_config, flatten, identity
from moe_jax.resolve import ConfigError, resolve, restore

DEFAULTS = flatten(RunConfig())
OF_TYPE = {kind: [name for name, value in DEFAULTS.items() if type(value) is kind] for kind in (int, float, bool, str)}
SECTIONS = sorted({name.split(".")[0] for name in DEFAULTS if "." in name})

# 0 has a meaning of its own, or is an amount.
ZERO_ALLOWED = {
    *("seed", "model.head_dim", "moe.num_experts", "moe.first_dense", "moe.d_ff", "moe.num_shared_experts"),
    *("attention.scale", "attention.rope_original_length", "attention.rope_attention_factor"),
    *("attention.query_rank", "attention.kv_rank", "attention.rope_dim", "attention.value_dim"),
    *("attention.window", "lora.rank", "moe.penalty_loss", "moe.entropy_loss", "moe.target_experts"),
    *("data.max_bytes", "train.warmup_steps", "train.decay_steps", "eval.every", "eval.batches"),
    *(
        "moe.exchange_bound",
        "moe.second_threshold",
        "moe.jitter",
        "moe.expert_dropout",
        "moe.balance_loss",
        "moe.z_loss",
    ),
    *("moe.null_experts", "moe.top_groups", "moe.final_temperature", "moe.temperature_steps"),
    *("moe.shared_d_ff", "moe.importance_loss", "moe.load_loss", "moe.bias_rate", "moe.bias_steps"),
    *("data.ids_vocab_size", "data.workers", "train.final_learning_rate", "train.max_skipped"),
    *("train.b1", "train.b2", "train.weight_decay", "train.clip_norm"),
}
CHOICES = {
    "model.activation": "relu, gelu, swiglu, geglu, clamped_swiglu",
    "model.norm_place": "pre, post",
    "task": "text",
    "attention.kind": "grouped_query, latent",
    "attention.qk_norm": "'', head, projection",
    "attention.rope_scaling": "'', linear, llama3, yarn",
    "attention.kernel": "xla, cudnn",
    "model.dtype": "float32, bfloat16, float64",
    "model.remat": "none, full, save_exchange",
    "moe.activation": "relu, gelu, swiglu, geglu, clamped_swiglu",
    "moe.router": "switch, gshard, top_k, sigmoid, noisy_top_k, sinkhorn, hash, random, expert_choice, soft",
    "moe.exchange": "auto, all_to_all, ragged, all_gather",
    "moe.grouped_matmul": "auto, padded, ragged_dot, megablox, megablox_interpreted, mosaic_gpu, tokamax_tpu",
    "moe.router_dtype": "float32, bfloat16",
    "moe.group_score": "max, top2",
    "moe.dispatcher": "auto, einsum, capacity, soft",
    "moe.exchange_dtype": "'', float32, bfloat16",
    "moe.penalty": "''",
    "moe.drop_order": "position, choice, priority",
    "moe.second_expert": "always, threshold, random",
    "moe.balance_scope": "micro_batch, sequence, global_batch",
    "moe.bias_update": "sign, proportional",
    "data.tokenizer": "bytes, bpe",
    "data.ids_dtype": "uint8, uint16, uint32",
    "train.optimizer": "adamw, adafactor",
    "train.schedule": "cosine, rsqrt, wsd, constant",
}


# Names of things outside; the first has a grammar.
FREE_TEXT = {"data.source", "data.text_field", "data.prompt_field", "data.end_of_document", "data.cache_dir"}
LISTS = {  # a list that cannot be, and how it is refused
    "attention.windows": ((0, -1), r"\[1\]=-1 is negative"),
    "moe.num_experts_by_layer": ((4,), "has 1 entries for 2 MoE layers"),
    "moe.top_k_by_layer": ((1, 0), r"\[1\]=0 must be positive"),
    "moe.capacity_factor_by_layer": ((1.25, -1.0), r"\[1\]=-1.0 must be positive"),
    "moe.router_by_layer": (("new", "switch"), r"\[0\]='new' is unknown: choose one of switch, "),
    "lora.targets": (("attention", " "), r"\[1\]=' ' is empty"),
    "train.trainable": (("!",), r"\[0\]='' is empty"),
    "data.weights": ((-1.0,), "has an entry that is not positive"),
    "train.profile": ((1,), "is not .first step, number of steps."),
}


@pytest.mark.parametrize("name", OF_TYPE[str])
def test_every_text_is_one_of_a_few_or_free(name):
    assert (name in CHOICES) != (name in FREE_TEXT)


@pytest.mark.parametrize("name", [name for name, value in DEFAULTS.items() if type(value) is tuple])
def test_every_list_is_checked(name):
    value, refused = LISTS[name]
    assert re.match(rf"{name}.*{refused}", refusal({**MOE, name: value}))


@pytest.mark.parametrize("name", OF_TYPE[bool])
def test_a_flag_is_true_or_false(name):
    assert refusal({name: 1}) == f"{name}=1 is of type int: give a value of type bool"


def test_every_field_is_of_a_type_that_these_tests_go_through():
    assert {type(value) for value in DEFAULTS.values()} == {*OF_TYPE, tuple}


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("model.d_modle", r"did you mean model\.d_model\?"),
        ("modle.d_model", None),  # a section that does not exist
        ("moe.capacity", r"did you mean moe\.capacity_factor\?"),
        ("sed", r"did you mean seed\?"),
        ("nothing_like_it", r"moe_jax/config/schema\.py lists them all"),
    ],
)
def test_unknown_field(name, remedy):
    message = refusal({name: 1})
    assert re.match(rf"{re.escape(name.split('.')[0])}\S* is not a field of a run: ", message)
    assert remedy is None or re.search(remedy, message)


def test_dotted_name_that_is_not_nested():
    with pytest.raises(ConfigError, match=r"^model\.d_model is the name of a field, not of a section: nest it"):
        resolve({"model.d_model": 64})


@pytest.mark.parametrize("section", SECTIONS)
def test_section_is_not_a_field(section):
    assert refusal({section: 3}).startswith(f"{section}=3 is a section, not a field: set {section}.<field>")


@pytest.mark.parametrize("value", [True, "64", 64.0, None, {}, (64,)])
@pytest.mark.parametrize("name", ["seed", "model.d_model"])
def test_not_an_integer(name, value):
    assert refusal({name: value}).startswith(f"{name}={value!r} is of type {type(value).__name__}: ")


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"train.learning_rate": "3e-3"}, "float"),
        ({"train.learning_rate": True}, "float"),
        ({"moe.normalize_gates": 1}, "bool"),
        ({"moe.normalize_gates": "yes"}, "bool"),
        ({"moe.router": 2}, "str"),
        ({"train.profile": 5}, "tuple"),
    ],
)
def test_wrong_type(fields, wanted):
    [(name, value)] = fields.items()
    assert refusal(fields) == f"{name}={value!r} is of type {type(value).__name__}: give a value of type {wanted}"


def test_wrong_type_inside_a_tuple():
    assert refusal({"train.profile": (20, 3.0)}).startswith("train.profile[1]=3.0 is of type float: ")
    assert refusal({"data.weights": ("half",)}).startswith("data.weights[0]='half' is of type str: ")


def test_integer_for_a_float_and_list_for_a_tuple():
    run = run_of({"train.learning_rate": 1, "data.source": "stdlib,pypi:a==1", "data.weights": [1, 2.5]})
    assert (run.train.learning_rate, run.data.weights) == (1.0, (1.0, 2.5))
    assert type(run.train.learning_rate) is float


@pytest.mark.parametrize("experts", [0, 4])
@pytest.mark.parametrize("name", OF_TYPE[int])
def test_negative_size(name, experts):
    message = refusal({"moe.num_experts": experts, name: -2})
    assert re.match(rf"{name}=-2 (must be positive: give at least 1|is negative: give 0 or more)$", message)


@pytest.mark.parametrize("experts", [0, 4])
@pytest.mark.parametrize("name", [name for name in OF_TYPE[int] + OF_TYPE[float] if name not in ZERO_ALLOWED])
def test_zero(name, experts):
    message = refusal({"moe.num_experts": experts, name: 0})
    value = type(DEFAULTS[name])(0)
    assert re.match(rf"{name}={value} (must be positive: give|is outside \(0, 1\): )", message)


@pytest.mark.parametrize("name", sorted(ZERO_ALLOWED))
def test_zero_where_it_has_a_meaning(name):
    derived = {"model.head_dim": 16, "moe.d_ff": 256}
    threshold = {"moe.router": "gshard", "moe.top_k": 2, "moe.second_expert": "threshold"}
    needed = threshold if name == "moe.second_threshold" else {}
    assert flatten(run_of({**MOE, **needed, name: 0}))[name] == derived.get(name, 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", OF_TYPE[float])
def test_not_finite(name, value):
    assert refusal({name: value}) == f"{name}={value} is not finite: give a finite number"


@pytest.mark.parametrize("name", OF_TYPE[float])
def test_negative_number(name):
    message = refusal({name: -0.5})
    assert re.match(rf"{name}=-0\.5 (must be positive: give|is negative: give|is outside [\[(]0, 1[\])]: )", message)


@pytest.mark.parametrize("name", CHOICES)
def test_unknown_choice_lists_the_known_ones(name):
    start, _, listed = refusal({**MOE, name: "new"}).partition(": choose one of ")
    assert start == f"{name}='new' is unknown"
    assert set(CHOICES[name].split(", ")) <= set(listed.split(", "))


def test_derived_fields():
    run = run_of({"model.d_ff": 96, "model.activation": "geglu", "mesh.tensor": 2, "mesh.fsdp": -1}, num_devices=8)
    assert (run.model.head_dim, run.moe.d_ff, run.moe.activation, run.mesh.fsdp) == (16, 96, "geglu", 4)
    anneal = {**MOE, "moe.final_temperature": 0.5, "train.steps": 70}
    assert run_of(anneal).moe.temperature_steps == 70
    assert run_of({**anneal, "moe.temperature_steps": 20}).moe.temperature_steps == 20
    assert run.moe.temperature_steps == 0
    given = {"model.head_dim": 8, "moe.d_ff": 32, "moe.activation": "relu"}
    assert flatten(run_of(given)).items() >= given.items()


def test_fine_grained_experts_are_more_of_a_smaller_size_and_only_once():
    fields = {"moe.num_experts": 4, "moe.router": "top_k", "moe.top_k": 2, "moe.d_ff": 12, "moe.num_shared_experts": 1}
    by_layer = {"model.num_layers": 2, "moe.num_experts_by_layer": (2, 4), "moe.top_k_by_layer": (1, 2)}
    run = run_of({**fields, **by_layer, "moe.fine_grained": 3})
    moe = run.moe
    assert (moe.num_experts, moe.top_k, moe.d_ff, moe.fine_grained, moe.shared_d_ff) == (12, 6, 4, 1, 4)
    assert (moe.num_experts_by_layer, moe.top_k_by_layer) == ((6, 12), (3, 6))
    assert restore(json.loads(json.dumps(flatten(run)))) == run
    assert run_of({"moe.fine_grained": 2}) == run_of({}), "a dense model has nothing to split"


def test_one_device_takes_a_mesh_of_minus_one():
    assert run_of({"mesh.data": -1}).mesh.data == 1


def test_defaults_are_valid_and_partial_trees_take_them():
    run = resolve(default_config())
    assert run == resolve({}) == run_of({})
    assert dataclasses.replace(run, seed=3) == run_of({"seed": 3})


def test_soft_slots_of_training_and_evaluation_need_only_be_as_many():
    """0.3 * 32 / 4 and 0.28 * 32 / 4 are both 3 slots after rounding."""
    factors = {"moe.capacity_factor": 0.3, "moe.eval_capacity_factor": 0.28, "moe.group_size": 32}
    assert run_of({**SOFT, **factors}).moe.eval_capacity_factor == 0.28


def test_identity_leaves_out_what_may_change_on_resume():
    run = run_of({})
    may_change = {
        *("train.steps", "mesh.data", "log.every", "eval.every", "checkpoint.keep", "model.remat", "moe.dispatcher"),
        *("attention.kernel", "attention.chunk", "log.expert_loads", "data.cache_dir", "data.workers", "train.profile"),
    }
    assert not may_change & identity(run).keys()
    trained = {
        *("seed", "task", "model.d_model", "attention.kind", "attention.rope_theta", "attention.window"),
        *("moe.capacity_factor", "moe.router_by_layer", "moe.penalty", "data.source", "train.learning_rate"),
    }
    assert trained <= identity(run).keys()


@pytest.mark.parametrize("name", FILES)
def test_config_file_survives_json(name):
    run = load(name).run
    fields = json.loads(json.dumps(flatten(run)))
    assert resolve(nest(fields), run.mesh.data * run.mesh.fsdp * run.mesh.expert * run.mesh.tensor) == run


def test_the_dense_twin_differs_in_one_field():
    switch, dense = (flatten(load(name).run) for name in ("switch_small.py", "dense_small.py"))
    assert {name for name in switch if switch[name] != dense[name]} == {"moe.num_experts"}
    assert dense["moe.num_experts"] == 0
