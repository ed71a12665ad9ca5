import dataclasses
import json
import re

import pytest
from configurations import FILES, load, nest, run_of

from moe_jax.config.resolve import ConfigError, resolve
from moe_jax.config.schema import RunConfig, default_config, flatten, identity

DEFAULTS = flatten(RunConfig())
OF_TYPE = {kind: [name for name, value in DEFAULTS.items() if type(value) is kind] for kind in (int, float, bool, str)}
SECTIONS = sorted({name.split(".")[0] for name in DEFAULTS if "." in name})
MOE = {"moe.num_experts": 4}

# 0 has a meaning of its own, or is an amount.
ZERO_ALLOWED = {
    *("seed", "model.head_dim", "moe.num_experts", "moe.first_dense", "moe.d_ff", "moe.num_shared_experts"),
    *("data.max_bytes", "train.warmup_steps", "train.decay_steps", "eval.every", "eval.batches"),
    *("moe.second_threshold", "moe.jitter", "moe.balance_loss", "moe.z_loss", "train.final_learning_rate"),
    *("train.b1", "train.b2", "train.weight_decay", "train.clip_norm"),
}
CHOICES = {
    "model.activation": "relu, gelu, swiglu, geglu",
    "model.attention": "xla, cudnn",
    "model.dtype": "float32, bfloat16, float64",
    "model.remat": "none, full, save_exchange",
    "moe.activation": "relu, gelu, swiglu, geglu",
    "moe.router": "switch, gshard, top_k",
    "moe.dispatcher": "einsum, capacity",
    "moe.drop_order": "position, choice, priority",
    "moe.second_expert": "always, threshold, random",
    "data.tokenizer": "bytes, bpe",
    "train.optimizer": "adamw, adafactor",
    "train.schedule": "cosine, rsqrt, wsd, constant",
}


def refusal(fields, num_devices=1):
    """The one line that `fields` are refused with."""
    with pytest.raises(ConfigError) as caught:
        run_of(fields, num_devices)
    message = str(caught.value)
    assert "\n" not in message
    assert re.search(r": \w.*", message), f"{message!r} says no way out"
    return message


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
    assert re.match(rf"{name}={value} (must be positive: give|must be greater than 0|is outside \(0, 1\): )", message)


@pytest.mark.parametrize("name", sorted(ZERO_ALLOWED))
def test_zero_where_it_has_a_meaning(name):
    run = run_of({"moe.num_experts": 4, name: 0})
    assert flatten(run)[name] == (16 if name == "model.head_dim" else 256 if name == "moe.d_ff" else 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", OF_TYPE[float])
def test_not_finite(name, value):
    assert refusal({name: value}) == f"{name}={value} is not finite: give a finite number"


@pytest.mark.parametrize("name", OF_TYPE[float])
def test_negative_number(name):
    assert re.match(rf"{name}=-0\.5 (must be greater than 0|is negative|is outside [\[(]0, 1[\])]): ?", refusal({name: -0.5}))


@pytest.mark.parametrize("name", CHOICES)
def test_unknown_choice_lists_the_known_ones(name):
    message = refusal({**MOE, name: "new"})
    assert message.startswith(f"{name}='new' is unknown: choose one of ")
    assert message.endswith(CHOICES[name]) or set(CHOICES[name].split(", ")) < set(message.split(": choose one of ")[1].split(", "))


# Fields, devices, and the whole line or its beginning.
IMPOSSIBLE = [
    ({"moe.router": "top_k", "moe.top_k": 5}, 1, r"moe\.top_k=5 is more than moe\.num_experts=4: .* lower moe\.top_k"),
]
