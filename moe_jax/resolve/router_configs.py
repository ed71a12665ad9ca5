"""The files of `configs/routers/`: what is said or measured of every router is read from there, no second list."""

import functools
import runpy
from pathlib import Path

from moe_jax.config.schema import MoEConfig
from moe_jax.resolve import resolve

CONFIGS = Path(__file__).parents[2] / "configs" / "routers"


@functools.cache
def router_configs() -> dict[str, MoEConfig]:
    """{file name without ending: its resolved `moe` fields}, by name."""
    run = lambda path: resolve(runpy.run_path(str(path))["get_config"]())
    return {path.stem: run(path).moe for path in sorted(CONFIGS.glob("*.py"))}
