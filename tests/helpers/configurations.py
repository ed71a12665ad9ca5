"""Configurations for the tests of this folder, from dotted fields and from files."""

import inspect
import math
import re
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from moe_jax.config.schema import RunConfig
from moe_jax.resolve import ConfigError, resolve

ROOT = Path(__file__).parents[2]
NEED_A_FOLDER = ("finetune.py",)  # of a Hugging Face checkpoint; tests/interop/test_work_directory.py has one
CONFIGS = ROOT / "configs"
FILES = sorted(
    path.relative_to(CONFIGS).as_posix()
    for path in (*CONFIGS.glob("*.py"), *CONFIGS.glob("models/*.py"))
    if path.name not in NEED_A_FOLDER
)
MOE = {"moe.num_experts": 4}
BY_LAYER = {"model.num_layers": 2, "moe.num_experts": 4, "moe.num_experts_by_layer": (2, 4)}
EXPERT_CHOICE = {**MOE, "moe.router": "expert_choice", "moe.balance_loss": 0.0}
SOFT = {**EXPERT_CHOICE, "moe.router": "soft", "moe.eval_capacity_factor": 1.25}


def nest(fields: Mapping[str, Any]) -> dict[str, Any]:
    """{"model.d_model": 64, "seed": 0} -> {"model": {"d_model": 64}, "seed": 0}."""
    tree = {}
    for name, value in fields.items():
        *sections, field = name.split(".")
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[field] = value
    return tree


def run_of(fields: Mapping[str, Any], num_devices: int = 1) -> RunConfig:
    """The default run with these fields changed."""
    return resolve(nest(fields), num_devices)


def refusal(fields, num_devices=1):
    """The one line that `fields` are refused with."""
    with pytest.raises(ConfigError) as caught:
        run_of(fields, num_devices)
    message = str(caught.value)
    assert "\n" not in message
    assert re.search(r": \w.*", message), f"{message!r} says no way out"
    return message


class ConfigFile(NamedTuple):
    """A file of `configs/`, resolved for the smallest number of devices that it can use."""

    header: str
    run: RunConfig


def load(name: str) -> ConfigFile:
    path = ROOT / "configs" / name
    module = runpy.run_path(str(path))
    config = module["get_config"]()
    devices = math.prod(max(size, 1) for size in config.mesh.values())
    return ConfigFile(inspect.cleandoc(module["__doc__"]), resolve(config, devices))
