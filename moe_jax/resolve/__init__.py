"""From a config file to a run that has been checked: resolving, describing, counting."""

from moe_jax.config.rules import ConfigError
from moe_jax.resolve.run import check_field, resolve, restore

__all__ = ["ConfigError", "check_field", "resolve", "restore"]
