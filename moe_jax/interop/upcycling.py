"""Sparse upcycling: a dense model becomes an MoE model whose experts begin as its feed-forward networks.

Each expert begins as a copy of the layer's network (Komatsuzaki et al. 2023, arXiv 2212.05055), or, where experts are
G times as narrow, as one of the G parts that the network's hidden dimensions are cut into (He et al. 2024, arXiv
2410.07524). Of E experts expert n G + g is then part g of copy n, and the parts of a copy have equal router weights
(the paper's virtual groups): their logits are equal, a token's K choices are K / G whole copies, and with what comes
out of the parts multiplied by G the layer computes what the dense one did. Whether it does is checked, in numbers.
"""

import dataclasses
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from moe_jax.config.layers import LayerSpec, segments
from moe_jax.config.rules import ConfigError
from moe_jax.config.schema import MoEConfig, RunConfig, architecture
from moe_jax.interop.load import Weights, by_path, from_paths
from moe_jax.interop.loaded_model import LoadedModel
from moe_jax.interop.work_directory import (
    config_of_run,
    newest_weights,
    on_mesh,
    one_sequence_a_device,
)
from moe_jax.parallel.mesh import make_mesh
from moe_jax.tasks.registry import task_of
from moe_jax.train.begin import begin, refuse_used
from moe_jax.train.state import Model, Variables, build_model, init_state, state_shapes

CHECKED_TOKENS = (4, 64)  # sequences, length
TOLERANCE = 1e-4  # of the largest logit: rounding in float32
FREE = ("model.d_ff", "model.activation", "moe.")  # of the architecture, what may differ from the dense model's


class Options(NamedTuple):
    """How experts and routers begin."""

    noise: float = 0.0  # standard deviation of what is added to experts' weights, in those of each matrix
    router_std: float = 0.02  # of the routers' weights; 0: as drawn for a model that is trained from scratch
    seed: int = 0


def upcycle(source: Path, config: ml_collections.ConfigDict, workdir: Path, options: Options) -> None:
    """Makes `workdir` a run at step 0 of the MoE model of `config`, from the dense run in `source`.

    Raises ConfigError, in one line, where the models do not fit, where `workdir` is used already, and where at full
    capacity the MoE model does not compute what the dense one does; noise is added after that was checked.
    """
    refuse_used(workdir)
    sizes = {axis: size for axis, size in config.mesh.items() if size > 1}
    dense_run, dense_model = on_mesh(one_sequence_a_device(config_of_run(source), sizes), sizes)
    run, model = on_mesh(config, sizes)
    parts = check_fits(dense_run, run)
    dense_run, variables = newest_weights(source, dense_run, dense_model)
    dense = Weights(variables.params, variables.balance_bias)
    mesh = make_mesh(run.mesh)
    weights = upcycled(dense_run, dense, run, model, mesh, options)
    difference = check_same(dense_run, dense, run, weights, mesh)
    logging.info("At full capacity logits differ from the dense model's by %.1e of the largest", difference)
    if options.noise:
        weights = weights._replace(params=with_noise(weights.params, options))
    begin(run, workdir, Variables(jnp.int32(0), *weights), f"upcycled:{source.absolute()}")
    of = f"copies of {parts} parts each" if parts > 1 else "copies"
    logging.info("%s is at step 0: %d experts, %s", workdir, run.moe.num_experts, of)


def check_fits(dense: RunConfig, run: RunConfig) -> int:
    """G, the parts that each network is cut into. Raises ConfigError where the models do not fit."""
    if dense.moe.num_experts or not run.moe.num_experts:
        raise ConfigError(
            f"moe.num_experts={run.moe.num_experts} from moe.num_experts={dense.moe.num_experts}: upcycling goes from "
            "a dense run (0) to an MoE model (more)"
        )
    theirs, ours = architecture(dense), architecture(run)
    differing = [name for name in ours if not name.startswith(FREE) and theirs[name] != ours[name]]
    if differing:
        name = differing[0]
        raise ConfigError(f"{name}={ours[name]!r} and the dense run has {theirs[name]!r}: set it to that")
    moe = run.moe
    if moe.num_shared_experts or moe.expert_bias or moe.null_experts or moe.num_experts_by_layer or moe.top_k_by_layer:
        raise ConfigError(
            "moe.num_shared_experts, moe.expert_bias, moe.null_experts and the fields by layer have no counterpart in "
            "a dense model: leave them out"
        )
    if (moe.activation, run.model.activation) != (dense.model.activation,) * 2:
        raise ConfigError(f"moe.activation={moe.activation!r}: the dense run has {dense.model.activation!r}, use that")
    if run.model.d_ff != dense.model.d_ff and any(at.spec.moe is None for at in _layers(run)):
        raise ConfigError(f"model.d_ff={run.model.d_ff} of the layers that stay dense: use {dense.model.d_ff}")
    parts = dense.model.d_ff // moe.d_ff if moe.d_ff else 0
    if parts * moe.d_ff != dense.model.d_ff or moe.num_experts % parts or moe.top_k % parts:
        raise ConfigError(
            f"moe.d_ff={moe.d_ff} cuts the dense model.d_ff={dense.model.d_ff} into parts, whose number has to be "
            f"whole and divide moe.num_experts={moe.num_experts} and moe.top_k={moe.top_k}"
        )
    return parts


def upcycled(
    dense_run: RunConfig, dense: Weights, run: RunConfig, model: Model, mesh: Mesh, options: Options
) -> Weights:
    """The weights of the MoE model, without noise, in the shardings of `model`."""
    of_dense = by_path(dense.params)
    given = {
        path: _begun(path, shape, dense_run, of_dense, run, options) for path, shape in by_path(model.shapes).items()
    }
    optimizer = optax.identity()  # what else a router has is drawn as always
    known = Variables(jnp.int32(0), from_paths(given, model.shapes), model.balance_bias)
    state = init_state(task_of(run), state_shapes(model, optimizer, mesh), optimizer, known)
    return Weights(state.params, state.balance_bias)


def _begun(
    path: str, shape: Any, dense_run: RunConfig, dense: Mapping[str, Array], run: RunConfig, options: Options
) -> Any:
    """A weight of the MoE model, or its shape where it is to be drawn."""
    if not path.startswith("segments/"):
        return dense[path]
    _, segment, _, place, name = path.split("/", 4)
    parts = dense_run.model.d_ff // run.moe.d_ff
    if name.startswith("moe/router/"):
        return _router(shape, path, parts, options) if name == "moe/router/weight" else shape
    source = name.replace("moe/experts/", "feed_forward/")
    there = [at for at in _layers(run) if (at.segment, at.place) == (int(segment), int(place))]
    theirs = _layers(dense_run)
    from_there = [theirs[at.layer] for at in there]
    stacked = jnp.stack([dense[f"segments/{at.segment}/blocks/{at.place}/{source}"][at.repeat] for at in from_there])
    if source != name:
        stacked = _experts(stacked, name.rpartition("/")[2], run.moe, parts)
    return jax.device_put(stacked, shape.sharding)


class _Layer(NamedTuple):
    """Where a layer is in the segments of a model."""

    layer: int
    segment: int
    place: int
    repeat: int
    spec: LayerSpec


def _layers(run: RunConfig) -> list[_Layer]:
    """The layers from input to output."""
    found: list[_Layer] = []
    for i, segment in enumerate(segments(run)):
        for repeat in range(segment.repeats):
            for j, spec in enumerate(segment.pattern):
                found.append(_Layer(len(found), i, j, repeat, spec))
    return found


def _experts(matrices: Array, name: str, moe: MoEConfig, parts: int) -> Array:
    """[layers, E, ...] of [layers, D, F], or for "down" of [layers, F, D]: the parts one after another, then again."""
    layers, rows, columns = matrices.shape
    if name == "down":
        cut = parts * matrices.reshape(layers, parts, rows // parts, columns)
    else:
        cut = matrices.reshape(layers, rows, parts, columns // parts).swapaxes(1, 2)
    return jnp.tile(cut, (1, moe.num_experts // parts, 1, 1))


def _router(shape: Any, path: str, parts: int, options: Options) -> Array:
    """[layers, D, E] normal numbers, the same for the parts of a copy."""
    layers, width, experts = shape.shape
    random = np.random.default_rng([options.seed, *path.encode()])
    drawn = (options.router_std or width**-0.5) * random.standard_normal((layers, width, experts // parts))
    return jax.device_put(jnp.asarray(np.repeat(drawn, parts, axis=-1), shape.dtype), shape.sharding)


def with_noise(params: PyTree, options: Options) -> PyTree:
    """The weights with normal noise added to the experts' matrices, in each expert another."""

    def noisy(path: str, weight: Array) -> Array:
        if "/moe/experts/" not in path:
            return weight
        key = jax.random.fold_in(jax.random.key(options.seed), zlib.crc32(path.encode()))
        std = options.noise * jnp.std(weight, axis=(-2, -1), keepdims=True)
        return weight + std * jax.random.normal(key, weight.shape, weight.dtype)

    return from_paths({path: noisy(path, weight) for path, weight in by_path(params).items()}, params)


def check_same(dense_run: RunConfig, dense: Weights, run: RunConfig, weights: Weights, mesh: Mesh) -> float:
    """The largest difference of logits on random tokens, over the largest logit, with room for every choice.

    Raises ConfigError where it is more than rounding.
    """
    ids = np.random.RandomState(0).randint(0, run.model.vocab_size, CHECKED_TOKENS)
    expected, found = (_logits(each, its, mesh, ids) for each, its in ((dense_run, dense), (run, weights)))
    difference = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not difference <= TOLERANCE:
        raise ConfigError(
            "the MoE model does not compute what the dense one does: logits differ by "
            f"{difference:.1e} of the largest. A token's gates have to add up to 1: set moe.normalize_gates=True with "
            "moe.top_k > 1, moe.routed_scaling=1 and a router that chooses token by token"
        )
    return difference


def _logits(run: RunConfig, weights: Weights, mesh: Mesh, ids: np.ndarray) -> np.ndarray:
    dtype = "float64" if run.model.dtype == "float64" else "float32"
    full = run.moe.num_experts / run.moe.top_k
    run = dataclasses.replace(
        run,
        model=dataclasses.replace(run.model, dtype=dtype),
        moe=dataclasses.replace(run.moe, eval_capacity_factor=full) if full else run.moe,
    )
    return np.asarray(LoadedModel(run, mesh, build_model(task_of(run), mesh), weights)(ids))
