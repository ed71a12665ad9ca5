"""The full-size configurations have the architecture that released models' config.json says."""

import json

import pytest
from configurations import FILES, load
from published import PUBLISHED
from released import RELEASED

from moe_jax.config.rules import ConfigError
from moe_jax.interop.description import Description
from moe_jax.interop.export import differences, disagreements
from moe_jax.interop.families import ALIASES, FAMILIES
from moe_jax.interop.folder import config_of, open_folder
from moe_jax.resolve import resolve

PLACES = {name: next(file for file in FILES if file.endswith(f"{name}.py")) for name in PUBLISHED}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_configuration_is_the_released_model(name):
    described = PUBLISHED[name]
    family = FAMILIES[ALIASES.get(described["model_type"], described["model_type"])]
    description = Description(described, name)
    fields = family.read(description)
    description.finish()
    run = load(PLACES[name]).run
    assert not disagreements(fields, run)
    assert disagreements(fields | {"attention.rope_theta": 7.0}, run) == [
        f"attention.rope_theta={run.attention.rope_theta}"
    ]


def test_every_full_shape_of_a_released_checkpoint_has_a_row():
    others = ("base", "gpt4_described", "switch_")
    files = {
        file
        for file in FILES
        if file.startswith("models/") and not file.startswith(tuple(f"models/{o}" for o in others))
    }
    assert files | {"mixtral_8x7b.py"} == set(PLACES.values())


@pytest.mark.parametrize("name", RELEASED)
def test_whole_files_are_read(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(RELEASED[name]))
    opened = open_folder(tmp_path)
    assert opened.fields["model.num_layers"] == RELEASED[name]["num_hidden_layers"]
    config = config_of(tmp_path)
    config.data.sequence_length = config.moe.group_size
    assert not differences(opened.family, resolve(config))
    described = RELEASED[name] | {"a_field_of_tomorrow": 1}
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(ConfigError, match="a_field_of_tomorrow=1 is not known for this family"):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("gpt-oss-20b", "layer_types"), ("gpt-oss-20b", "rope_scaling"), ("glm-4.5-air", "partial_rotary_factor"),
        ("deepseek-v3", "routed_scaling_factor"), ("deepseek-v3", "topk_group"), ("ernie-21b", "tie_word_embeddings"),
    ],
)  # fmt: skip
def test_a_default_of_the_family_is_not_guessed(name, field, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in RELEASED[name].items() if k != field}))
    with pytest.raises(ConfigError, match=f"has no .*{field}"):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "theta"), [("mixtral", 1e6), ("minimax-m2", 5e6), ("ernie-21b", 5e5), ("llama-2", 1e4)]
)
def test_rotary_bases_that_are_not_said(name, theta, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in RELEASED[name].items() if k != "rope_theta"}))
    assert open_folder(tmp_path).fields["attention.rope_theta"] == theta


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("mixtral", {"num_experts_per_tok": 0}),
        ("llama-2", {"rope_scaling": "x"}),
        ("granite-1b-a400m", {"logits_scaling": 0}),
        ("llama-3.1-8b", {"rope_scaling": {"rope_type": [1]}}),
        ("deepseek-v3", {"rope_scaling": {"type": "yarn", "mscale_all_dim": 1}}),
        ("deepseek-v3", {"topk_method": "greedy"}),
        ("minimax-m2", {"attn_type_list": [{}]}),
        ("minimax-m2", {"attn_type_list": [1, 0]}),
        ("minimax-m2", {"use_routing_bias": False}),
        ("dots", {"sliding_window": 8, "max_window_layers": 2, "layer_types": None}),
        ("qwen3-30b", {"mlp_only_layers": [3]}),
        ("ernie-21b", {"moe_norm_min": 10.0}),
        ("ernie-21b", {"moe_layer_end_index": 20}),
    ],
)
def test_values_that_cannot_be_and_those_that_are_not_supported(name, fields, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(RELEASED[name] | fields))
    with pytest.raises(ConfigError) as caught:
        open_folder(tmp_path)
    assert "\n" not in str(caught.value)
