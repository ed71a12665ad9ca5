"""Where a model to decode with comes from: a work directory or a Hugging Face folder, with its tokenizer."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from jax.sharding import Mesh

from moe_jax.config.layers import moe_by_layer
from moe_jax.config.rules import ConfigError, one_of
from moe_jax.config.schema import RunConfig
from moe_jax.data.corpus import load_corpus
from moe_jax.data.tokenizers import Tokenizer, fixed_tokenizer, kind_of
from moe_jax.inference.steps import cache_bytes
from moe_jax.inference.text import Text
from moe_jax.inference.weights import FORMS, Weights, place
from moe_jax.interop.folder import config_of, open_folder
from moe_jax.interop.load import load_weights
from moe_jax.interop.loaded_model import DTYPES, with_dtype
from moe_jax.interop.work_directory import (
    KEPT,
    TOKENIZER,
    check_tokenizer,
    config_of_run,
    newest_weights,
    on_mesh,
    one_sequence_a_device,
)
from moe_jax.moe.routers import ROUTERS
from moe_jax.parallel.mesh import make_mesh

DROPLESS = "dropless"  # decoding drops nothing


class Source(NamedTuple):
    """A model that is ready to be decoded with."""

    run: RunConfig
    mesh: Mesh
    weights: Weights
    text: Text


def from_workdir(workdir: Path, sizes: Mapping[str, int], dtype: str = "", form: str = "") -> Source:
    """The newest checkpoint of a run, low-rank adapters merged.

    Args:
      workdir: of the run, whose data or tokenizer file has to be where it was.
      sizes: of mesh axes that are not 1.
      dtype: float32, bfloat16 or float64, of weights and matmuls; "": the run's own model.dtype.
      form: of matrices, see `place`.

    Raises ConfigError, in one line, where there is no checkpoint, or a router looks ahead.
    """
    config = one_sequence_a_device(config_of_run(workdir), sizes)
    config.model.dtype = dtype or config.model.dtype
    check_forms(config.model.dtype, form)
    run, model = on_mesh(config, sizes)
    check_routers(run)
    run, variables = newest_weights(workdir, run, model)
    mesh = make_mesh(run.mesh)
    kept = workdir / KEPT
    text = text_of_folder(kept, run) if (kept / TOKENIZER).is_file() else text_of_run(run)
    return Source(run, mesh, place(run, mesh, *variables, form), text)


def from_hf(folder: Path, sizes: Mapping[str, int], dtype: str = "", form: str = "") -> Source:
    """A Hugging Face folder; the arguments are those of `from_workdir`, dtype "" being float32."""
    opened = open_folder(folder)
    config = one_sequence_a_device(config_of(folder), sizes)
    config.model.dtype = dtype or "float32"
    check_forms(config.model.dtype, form)
    check_tokenizer(opened)
    run, model = on_mesh(config, sizes)
    weights = load_weights(opened, run, with_dtype(model, run.model.dtype))
    mesh = make_mesh(run.mesh)
    return Source(run, mesh, place(run, mesh, jnp.int32(0), *weights, form), text_of_folder(folder, run))


def check_forms(dtype: str, form: str) -> None:
    """Raises ConfigError for a precision that there is not."""
    one_of("--dtype", dtype, DTYPES)
    one_of("--weights", form, FORMS)
    if dtype == "float64" and jax.dtypes.canonicalize_dtype(jnp.float64) != jnp.float64:
        raise ConfigError("--dtype=float64 needs JAX_ENABLE_X64=1 in the environment: set it")


def check_routers(run: RunConfig) -> None:
    """Raises ConfigError where a layer's experts cannot be chosen a token at a time."""
    for moe in moe_by_layer(run):
        router = ROUTERS[moe.router]
        if not router.causal_in_evaluation or DROPLESS not in router.dispatchers:
            raise ConfigError(
                f"moe.router={moe.router!r} chooses for a token by those behind it, which decoding does not have yet: "
                "train with a router that chooses for each token alone, such as 'top_k'"
            )


def text_of_run(run: RunConfig) -> Text:
    """The tokenizer of `data.tokenizer`; one that was trained is found with the data, which may be read again."""
    if kind_of(run.data).trained:
        tokenizer: Tokenizer = load_corpus(run.data, run.model.vocab_size, run.seed).tokenizer
    else:
        tokenizer = fixed_tokenizer(run.data, run.data.source)
    decode = lambda ids: tokenizer.decode(np.asarray(ids, np.int64))
    encode = lambda text: [int(token) for token in tokenizer.encode(text)]
    return Text(encode, decode, frozenset([int(tokenizer.end_of_document)]))


def text_of_folder(folder: Path, run: RunConfig) -> Text:
    """The tokenizer of a Hugging Face folder, special tokens around a text included, and its stop tokens."""
    path = folder / TOKENIZER
    if not path.is_file():
        return _only_ids(run)
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    stops = {token for name in ("config.json", "generation_config.json") for token in _stop_tokens(folder / name)}
    return Text(
        lambda text: tokenizer.encode(text).ids,
        lambda ids: tokenizer.decode(list(ids), skip_special_tokens=True),
        frozenset(stops),
    )


def _only_ids(run: RunConfig) -> Text:
    def encode(text: str) -> list[int]:
        raise ConfigError(f"there is no {TOKENIZER} beside the weights: give prompts as ids, or put the file there")

    return Text(encode, lambda ids: " ".join(map(str, ids)), frozenset())


def _stop_tokens(path: Path) -> list[int]:
    """eos_token_id, which may be a list."""
    try:
        named: Any = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError):
        return []
    several = named if isinstance(named, list) else [named]
    return [token for token in several if isinstance(token, int)]


def check_room(run: RunConfig, places: int, length: int, piece: int) -> None:
    """Raises ConfigError where the caches of so many sequences do not fit beside what the devices hold already."""
    if problem := places_problem(run, places, length, piece, _free_bytes()):
        raise ConfigError(problem)


def places_problem(run: RunConfig, places: int, length: int, piece: int, free: float) -> str | None:
    """What is wrong with so many places, where so many bytes are free."""
    each = cache_bytes(run, length, piece)
    if places * each <= free:
        return None
    return (
        f"--places={places} with --length={length} need {places * each / 1e9:,.2f} GB for their caches, and "
        f"{int(free / each)} fit: lower one of the two"
    )


def _free_bytes() -> float:
    """Of all devices; infinite where they do not say."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    free = [one["bytes_limit"] - one["bytes_in_use"] for one in stats if one and "bytes_limit" in one]
    if free or jax.default_backend() != "cpu":
        return sum(free) or math.inf
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return math.inf
    return next((1024 * float(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), math.inf)
