"""From weights on a mesh to a folder that Hugging Face loads."""

import contextlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from safetensors.numpy import save_file

from moe_jax.config.rules import ConfigError, MachineError, one_of
from moe_jax.config.schema import RunConfig, flatten
from moe_jax.data.progress import progress
from moe_jax.interop.description import Description
from moe_jax.interop.families import FAMILIES, Family
from moe_jax.interop.folder import CARRIED, CONFIG
from moe_jax.interop.load import Weights, by_path
from moe_jax.interop.read import copy_to
from moe_jax.interop.table import Binding
from moe_jax.interop.tensors import DTYPES, INDEX, SINGLE

MAX_FILE_BYTES = 4_000_000_000
NAMES_OF_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# Fields of a run that a family describes. Capacity, dispatch, balancing and the like are not part of a model there.
DESCRIBED = (
    *("model.num_layers", "model.d_model", "model.num_heads", "model.num_kv_heads", "model.head_dim"),
    *("model.vocab_size", "model.tie_embeddings", "model.norm_eps", "model.norm_place"),
    *("model.embedding_scale", "model.residual_scale", "model.logits_scale"),
    *("moe.num_experts", "moe.top_k", "moe.every", "moe.first_dense", "moe.normalize_gates", "moe.routed_scaling"),
    *("moe.num_shared_experts", "moe.shared_gate", "moe.expert_bias", "moe.router_bias", "moe.expert_groups"),
    *("moe.top_groups", "moe.group_score", "moe.null_experts"),
    *("moe.temperature", "moe.final_temperature", "moe.router_dtype"),
    *("moe.num_experts_by_layer", "moe.top_k_by_layer", "moe.router_by_layer"),
)
NOT_DESCRIBED = ("attention.kernel", "attention.chunk")


def family_of(run: RunConfig) -> Family:
    """The first family whose config.json says all of the run's model. Raises ConfigError where there is none, naming
    what each of the nearest cannot say.
    """
    reasons = {}
    for family in FAMILIES.values():
        differing = differences(family, run)
        if not differing:
            return family
        reasons[family.model_type] = differing
    nearest = min(reasons, key=lambda name: len(reasons[name]))
    raise ConfigError(
        f"no family of Hugging Face's that is supported says all of this model: {nearest} comes nearest, but for "
        f"{', '.join(reasons[nearest])}"
    )


def differences(family: Family, run: RunConfig) -> list[str]:
    """What the family's config.json cannot say of the run's model, as "field=value", after a round trip through it."""
    try:
        description = Description(json.loads(json.dumps(family.write(run))), family.model_type)
        fields = family.read(description)
    except (ConfigError, ValueError, ZeroDivisionError, OverflowError, KeyError) as error:
        return [str(error)]
    return disagreements(fields, run)


def disagreements(fields: Mapping[str, Any], run: RunConfig) -> list[str]:
    """Where the fields of a model that was described elsewhere are not the run's, as the run's "field=value"."""
    said, ours = {**flatten(RunConfig()), **fields}, flatten(run)
    names = [name for name in ours if name in DESCRIBED or name.split(".")[0] == "attention"]
    names = [name for name in names if name not in NOT_DESCRIBED]
    differing = [name for name in names if not _same(said[name], ours[name])]
    return [f"{name}={ours[name]!r}" for name in differing] + _by_meaning(said, ours)


def _by_meaning(said: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Fields that matter only where there is something that they are of."""
    differing = []
    experts, dense_layers = ours["moe.num_experts"], ours["moe.first_dense"] or ours["moe.every"] > 1
    if not experts or dense_layers:
        differing += [name for name in ("model.d_ff", "model.activation") if said[name] != ours[name]]
    if experts:
        activation = lambda fields: fields["moe.activation"] or fields["model.activation"]
        router = lambda fields: "top_k" if fields["moe.router"] == "switch" else fields["moe.router"]
        shared = lambda fields: fields["moe.shared_d_ff"] or fields["moe.num_shared_experts"] * fields["moe.d_ff"]
        biased = lambda fields: fields["moe.balance_bias"] or fields["moe.bias_rate"] > 0
        for name, meaning in (
            ("moe.activation", activation),
            ("moe.router", router),
            ("moe.shared_d_ff", shared),
            ("moe.balance_bias", biased),
            ("moe.d_ff", lambda fields: fields["moe.d_ff"] or fields["model.d_ff"]),
        ):
            differing += [name] if meaning(said) != meaning(ours) else []
    return [f"{name}={ours[name]!r}" for name in differing]


def _same(a: Any, b: Any) -> bool:
    numbers = isinstance(a, float) and isinstance(b, float)
    return math.isclose(a, b, rel_tol=1e-6) if numbers else a == b


def write_folder(
    folder: Path,
    run: RunConfig,
    weights: Weights,
    family: Family,
    dtype: str,
    described: Mapping[str, Any] | None = None,
    dtypes: Mapping[str, str] | None = None,
    carried: Path | None = None,
) -> None:
    """Writes config.json and safetensors, in files of at most 4 GB or one tensor, and what is carried along.

    Everything is first written beside the folder, and renamed when it is whole. Host memory is needed for the tensors
    of one file.

    Args:
      folder: must not exist.
      dtype: of the tensors, as safetensors names it: F32, BF16, F16 or F64.
      described: the config.json that the model came with; None: it is written anew.
      dtypes: of tensors that have another type, by name.
      carried: a folder with tokenizer files and the like; None: there are none.

    Raises ConfigError for a folder that is there, MachineError where it cannot be written.
    """
    one_of("dtype", dtype, NAMES_OF_DTYPES)
    refuse_existing(folder)
    shapes = {**by_path(weights.params), **by_path(weights.balance_bias)}
    bindings = list(family.table.bindings(run, {path: leaf.shape for path, leaf in shapes.items()}))
    with _draft(folder) as draft:
        description = _described(family, run, dtype, described)
        (draft / CONFIG).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        for name in CARRIED if carried is not None else ():
            if (carried / name).is_file():  # type: ignore[operator]  # not None, as just tested
                shutil.copyfile(carried / name, draft / name)  # type: ignore[operator]
        _write_tensors(draft, bindings, shapes, dtype, dtypes or {})
    logging.info("Wrote %s, a %s", folder, family.architecture)


def refuse_existing(folder: Path) -> None:
    """Raises ConfigError where there is something of that name: nothing is written over."""
    if os.path.lexists(folder):
        raise ConfigError(f"{folder} is there already, and nothing is written over: choose another folder")


def _described(family: Family, run: RunConfig, dtype: str, original: Mapping[str, Any] | None) -> dict[str, Any]:
    """config.json, saying how the tensors are stored: quantised ones become the numbers that they stand for."""
    described = dict(original) if original else _new(family, run)
    described.pop("quantization_config", None)
    described.pop("auto_map", None)  # names code that does not come along
    described["model_type"] = family.model_type
    described["architectures"] = [family.architecture]
    described["torch_dtype" if "torch_dtype" in described else "dtype"] = NAMES_OF_DTYPES[dtype]
    return described


def _new(family: Family, run: RunConfig) -> dict[str, Any]:
    """config.json of a model that began here. Its tokenizer is not theirs, so no token has a special meaning."""
    attention = run.attention
    positions = max(run.data.sequence_length, int(attention.rope_factor * attention.rope_original_length))
    tokens = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return {"model_type": family.model_type, **family.write(run), "max_position_embeddings": positions, **tokens}


@contextlib.contextmanager
def _draft(folder: Path) -> Iterator[Path]:
    """A folder beside `folder`, of a name that nobody else has, that becomes it or is removed."""
    with contextlib.ExitStack() as stack:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
            stack.callback(shutil.rmtree, draft, ignore_errors=True)
            shutil.copymode(folder.parent, draft)  # the library lets nobody else into it
            yield draft
            draft.rename(folder)
        except OSError as error:
            raise MachineError(f"{folder} cannot be written ({error.strerror or error})") from None


def _write_tensors(
    folder: Path, bindings: Sequence[Binding], weights: Mapping[str, jax.Array], dtype: str, dtypes: Mapping[str, str]
) -> None:
    parts = _parts(bindings)
    of = lambda name: dtypes.get(name, dtype)
    size = lambda name: math.prod(_shape(parts[name])) * np.dtype(DTYPES[of(name)]).itemsize
    files = _files(parts, size)
    names = [SINGLE] if len(files) == 1 else [_file_name(i, len(files)) for i in range(len(files))]
    total = sum(map(size, parts))
    with progress("writing weights", total) as advance:
        for file, tensors in zip(names, files, strict=True):
            made = {}
            for tensor in tensors:
                made[tensor] = _tensor(parts[tensor], weights, DTYPES[of(tensor)])
                advance(size(tensor))
            save_file(made, folder / file, metadata={"format": "pt"})
            shutil.copymode(folder / CONFIG, folder / file)  # the library lets nobody else read it
    if len(files) > 1:
        where = {tensor: file for file, tensors in zip(names, files, strict=True) for tensor in tensors}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


Part = tuple[Binding, tuple[int, ...]]  # a parameter of ours, and the place in its stack


def _parts(bindings: Sequence[Binding]) -> dict[str, list[Part]]:
    """What each of their tensors is made of, in the order of layers."""
    parts: dict[str, list[Part]] = {}
    for binding in bindings:
        for place in np.ndindex(binding.names.shape):
            parts.setdefault(str(binding.names[place]), []).append((binding, place))
    return dict(sorted(parts.items(), key=lambda item: _layer(item[0])))


def _layer(name: str) -> tuple[int, str]:
    numbers = [int(word) for word in name.split(".") if word.isdecimal()]
    return (numbers[0] if numbers else -1, name)


def _shape(parts: Sequence[Part]) -> tuple[int, ...]:
    binding, _ = parts[0]
    return binding.layout.their_shape(binding.inner)


def _tensor(parts: Sequence[Part], weights: Mapping[str, jax.Array], dtype: Any) -> np.ndarray:
    out = np.empty(_shape(parts), dtype)
    for binding, place in parts:
        # One layer's weights come to the host at a time; of its experts the whole stack, which is then cut there.
        values = np.asarray(jax.device_get(weights[binding.path][place] if place else weights[binding.path]))
        view = binding.layout.view(out)
        for expert in range(len(values)) if values.ndim == 3 else (slice(None),):
            copy_to(view[expert], values[expert])
    return out


def _files(parts: Mapping[str, Any], size: Any) -> list[list[str]]:
    files: list[list[str]] = [[]]
    bytes_in_file = 0
    for name in parts:
        if files[-1] and bytes_in_file + size(name) > MAX_FILE_BYTES:
            files.append([])
            bytes_in_file = 0
        files[-1].append(name)
        bytes_in_file += size(name)
    return files


def _file_name(index: int, count: int) -> str:
    return f"model-{index + 1:05d}-of-{count:05d}.safetensors"
