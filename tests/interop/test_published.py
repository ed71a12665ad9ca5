"""The full-size configurations have the architecture that released models' config.json says."""

import json

import pytest
from configurations import FILES, load
from published import PUBLISHED
from released import RELEASED

from moe_jax.config.rules import ConfigError
from moe_jax.interop.description import Description
from moe_jax.interop.export import disagreements
from moe_jax.interop.families import ALIASES, FAMILIES
from moe_jax.interop.folder import open_folder

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
    described = RELEASED[name] | {"a_field_of_tomorrow": 1}
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(ConfigError, match="a_field_of_tomorrow=1 is not known for this family"):
        open_folder(tmp_path)
