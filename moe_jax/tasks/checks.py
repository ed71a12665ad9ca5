"""What `task` has to satisfy."""

from moe_jax.config.rules import one_of
from moe_jax.config.schema import RunConfig
from moe_jax.tasks.registry import TASKS


def check(run: RunConfig) -> None:
    """Raises ConfigError for an unknown task."""
    one_of("task", run.task, TASKS)
