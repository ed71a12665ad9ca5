"""Compiles the steps of training and decoding from shapes alone, without a corpus, weights or an accelerator."""

import re
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from moe_jax.config.schema import RunConfig
from moe_jax.inference.steps import Steps, cache_shapes
from moe_jax.inference.weights import weight_shapes
from moe_jax.models.attention.kernels import check_platform
from moe_jax.parallel.compiler_options import compiler_options
from moe_jax.tasks.registry import task_of
from moe_jax.train.setup import lower_train_step

_OUT_OF_MEMORY = re.compile(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Built(NamedTuple):
    """What there is to read of a compiled step."""

    text: str  # of the optimised program; empty: the compiler gave up, since it does not fit
    peak_memory: float  # bytes of a device
    arguments: float  # bytes of a device that the step is given: weights, optimiser's state, caches, batch
    seconds: float  # of tracing and compiling


def build(compile_step: Callable[[], tuple[jax.stages.Compiled, float]]) -> Built:
    """The outcome of one of the functions below. A step that is too large for the device is an outcome too.

    Raises ValueError where the compiler reports neither text nor memory.
    """
    start = time.perf_counter()
    try:
        compiled, seconds = compile_step()
    except jax.errors.JaxRuntimeError as error:
        found = _OUT_OF_MEMORY.search(str(error))
        if found is None:
            raise
        return Built("", float(found[1]) * _UNITS[found[2]], 0.0, time.perf_counter() - start)
    text, memory = compiled.as_text(), compiled.memory_analysis()
    if text is None or memory is None:
        raise ValueError("the compiler of this platform reports no text or no memory: audit for another target")
    return Built(text, memory.peak_memory_in_bytes, memory.argument_size_in_bytes, seconds)


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
