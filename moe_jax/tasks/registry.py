"""Every task by its name in `task`. Add one in a file of this package, name it here, and declare its results."""

from collections.abc import Callable

from moe_jax.config.schema import RunConfig
from moe_jax.tasks.task import Task
from moe_jax.tasks.text import Text

TASKS: dict[str, Callable[[RunConfig], Task]] = {"text": Text}


def task_of(run: RunConfig) -> Task:
    """The task that `run` trains."""
    return TASKS[run.task](run)
