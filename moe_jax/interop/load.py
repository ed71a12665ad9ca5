"""From a Hugging Face folder to weights on a mesh."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from absl import logging
from jaxtyping import PyTree

from moe_jax.config.rules import ConfigError
from moe_jax.config.schema import RunConfig
from moe_jax.interop.folder import CONFIG, Folder
from moe_jax.interop.quantized import dequantized
from moe_jax.interop.read import read_weights
from moe_jax.interop.table import Binding, Mismatch, compare
from moe_jax.interop.tensors import Tensor, open_tensors
from moe_jax.resolve.counting import count
from moe_jax.train.state import Model

# Tensors of any family that no logits depend on: tables of older releases, which the config says again, and with tied
# embeddings an output head of its own, which transformers does not read either.
WITHOUT_COUNTERPART, TIED_HEAD = (r".*\.rotary_emb\.inv_freq",), r"lm_head\.weight"
AGAIN = "download both again"
MOST_MISSING = 100  # times as many parameters as there are: no mistake of a few tensors
LISTED = 5  # names of tensors in a message


class Weights(NamedTuple):
    """Nested dicts of arrays, in the shardings of a `Model`."""

    params: PyTree
    balance_bias: PyTree


def load_weights(folder: Folder, run: RunConfig, model: Model) -> Weights:
    """The weights of a folder, in the shapes, types and shardings of `model`, which was built for `run`.

    Every tensor of the folder is used exactly once and every parameter set exactly once. Raises ConfigError, in one
    line that lists names, before anything is read, where a tensor is missing, is of another shape or is not known.
    """
    shapes = {**by_path(model.shapes), **by_path(model.balance_bias)}
    tensors = _used(folder, run, dequantized(open_tensors(folder.path)))
    there, needed = sum(math.prod(tensor.shape) for tensor in tensors.values()), count(run).total_params
    if needed > MOST_MISSING * there:  # before the names of so many are written out
        raise ConfigError(
            f"{folder.path}: {CONFIG} is of {needed:,} parameters, and the tensors have {there:,}: {AGAIN}"
        )
    bindings = bindings_of(folder, run, shapes)
    _check(folder, compare(bindings, {name: tensor.shape for name, tensor in tensors.items()}))
    weights = read_weights(tensors, bindings, shapes)
    return Weights(from_paths(weights, model.shapes), from_paths(weights, model.balance_bias))


def bindings_of(folder: Folder, run: RunConfig, shapes: Mapping[str, Any]) -> Sequence[Binding]:
    """Where each of our parameters is."""
    return list(folder.family.table.bindings(run, {path: leaf.shape for path, leaf in shapes.items()}))


def _used(folder: Folder, run: RunConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors but for those that no logits depend on."""
    left_out = [*WITHOUT_COUNTERPART, *folder.family.without_counterpart]
    left_out += [TIED_HEAD] if run.model.tie_embeddings else []
    patterns = [re.compile(pattern.replace("{num_layers}", str(run.model.num_layers))) for pattern in left_out]
    left = [name for name in tensors if any(pattern.fullmatch(name) for pattern in patterns)]
    if left:
        logging.info("%s: %d tensors that no logits depend on are left out: %s ...", folder.path, len(left), left[0])
    return {name: tensor for name, tensor in tensors.items() if name not in left}


def _check(folder: Folder, mismatch: Mismatch) -> None:
    kinds = {"missing": mismatch.missing, "of another shape": mismatch.wrong, "not known": mismatch.extra}
    found = [f"{len(names)} {kind} ({_listed(names)})" for kind, names in kinds.items() if names]
    if found:
        raise ConfigError(f"{folder.path}: tensors and {CONFIG} are at odds: {'; '.join(found)}: {AGAIN}")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def by_path(tree: PyTree) -> dict[str, Any]:
    """{"segments/0/blocks/0/attention/q": leaf, ...} of nested dicts."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(key.key) for key in path): leaf for path, leaf in leaves}


def from_paths(weights: Mapping[str, Any], like: PyTree) -> PyTree:
    """The nested dicts of `like` with the leaves of `weights`, by path."""
    return jax.tree.unflatten(jax.tree.structure(like), [weights[path] for path in by_path(like)])
