"""Configurations for the tests of this folder, from dotted fields and from files."""

import inspect
import math
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from moe_jax.config.resolve import resolve
from moe_jax.config.schema import RunConfig

ROOT = Path(__file__).parents[2]
FILES = sorted(path.name for path in (ROOT / "configs").glob("*.py"))


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
