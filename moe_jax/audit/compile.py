"""Compiles the steps of training and decoding from shapes alone, without a corpus, weights or an accelerator."""

import time
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from moe_jax.config.schema import RunConfig
from moe_jax.inference.steps import Steps, cache_shapes
from moe_jax.inference.weights import weight_shapes
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


def compile_decode_step(
    run: RunConfig, mesh: Mesh, places: int, length: int, piece: int = 1, form: str = ""
) -> tuple[jax.stages.Compiled, float]:
    """The compiled step of decoding on `mesh`, and the seconds that tracing and compiling took.

    Args:
      run: whose model decodes.
      mesh: on which.
      places: sequences at a time, on all devices together.
      length: tokens of a sequence, all of which the step reads of the caches.
      piece: 1: one more token of every sequence. More: so many tokens of one prompt on each part of the batch.
      form: of weights, see `moe_jax.inference.weights.place`.
    """
    start = time.perf_counter()
    steps = Steps(run, mesh, weight_shapes(run, mesh, form))
    compiled = steps.lower(cache_shapes(run, mesh, places, length, piece), piece).compile()
    return compiled, time.perf_counter() - start
