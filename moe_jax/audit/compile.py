"""Compiles the training step from shapes alone, without a corpus, weights or an accelerator."""

import time
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from moe_jax.config.schema import RunConfig
from moe_jax.models.attention.kernels import check_platform
from moe_jax.parallel.compiler_options import compiler_options
from moe_jax.tasks.registry import task_of
from moe_jax.train.setup import lower_train_step


def compile_train_step(
    run: RunConfig, mesh: Mesh, options: Mapping[str, Any] | None = None
) -> tuple[jax.stages.Compiled, float]:
    """The compiled step that the trainer would run on `mesh`, and the seconds that tracing and compiling took.

    `options` are XLA's; by default they are those that the trainer uses on this platform. Raises ConfigError for an
    attention kernel that the platform does not have.
    """
    platform = mesh.devices.flat[0].platform
    check_platform(run.attention.kernel, platform)
    options = compiler_options(platform) if options is None else options
    start = time.perf_counter()
    compiled = lower_train_step(task_of(run), mesh).compile(compiler_options=dict(options) or None)
    return compiled, time.perf_counter() - start
