"""Between Hugging Face folders and work directories."""

import collections
import dataclasses
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import ml_collections
import tokenizers
from absl import logging

from moe_jax.config.rules import ConfigError, MachineError, one_of
from moe_jax.config.schema import LoraConfig, RunConfig, default_config
from moe_jax.interop.export import NAMES_OF_DTYPES, differences, disagreements, family_of, refuse_existing, write_folder
from moe_jax.interop.folder import CARRIED, CONFIG, Folder, config_of, open_folder
from moe_jax.interop.load import Weights, load_weights
from moe_jax.interop.quantized import dequantized
from moe_jax.interop.tensors import Stored, open_tensors
from moe_jax.journal import workdir as records
from moe_jax.moe.lora import merged
from moe_jax.parallel.mesh import AXES, make_mesh
from moe_jax.resolve import resolve
from moe_jax.tasks.registry import task_of
from moe_jax.train.begin import begin, refuse_used
from moe_jax.train.checkpoints import Checkpoints
from moe_jax.train.state import Model, Variables, build_model

KEPT = "hf"  # folder of a work directory with what came with the weights: config.json, tokenizer and the like
FROM_FOLDER = "hf:"  # what the origin of such a run begins with
TYPES = "dtypes.json"  # in there: {tensor: its type}, so that an export has the types of the import
TOKENIZER = "tokenizer.json"
UNQUANTIZED = "BF16"  # what the numbers behind quantised tensors are exported in


def import_folder(folder: Path, workdir: Path, mesh: Mapping[str, int]) -> None:
    """Makes a work directory at step 0 of a Hugging Face folder.

    Its weights are in float32, as runs have them. `mesh` gives the sizes of mesh axes that are not 1. Raises
    ConfigError, in one line, for a folder that is not whole or not supported, and for a directory that is used already.
    """
    opened = open_folder(folder)
    refuse_used(workdir)
    check_tokenizer(opened)
    run, model = on_mesh(one_sequence_a_device(config_of(folder), mesh), mesh)
    weights = load_weights(opened, run, model)
    _keep(opened, workdir)
    begin(run, workdir, Variables(jnp.int32(0), *weights), f"{FROM_FOLDER}{folder.absolute()}")
    logging.info("%s is at step 0 of %s, a %s", workdir, folder, opened.family.architecture)


def export_run(workdir: Path, folder: Path, mesh: Mapping[str, int], dtype: str = "") -> None:
    """Writes the newest checkpoint of a run as a folder that Hugging Face loads; low-rank adapters are merged.

    Args:
      workdir: of any run whose model a supported family can say.
      folder: must not exist.
      mesh: sizes of mesh axes that are not 1.
      dtype: of the tensors: float32, bfloat16, float16; "": for a run that began with a Hugging Face folder the types
        there (bfloat16 for what was quantised), else float32.

    Raises ConfigError, in one line, where there is no checkpoint, no family that says the model, or a folder already.
    """
    names = {name: stored for stored, name in NAMES_OF_DTYPES.items()}
    if dtype:
        one_of("--dtype", dtype, names)
    refuse_existing(folder)
    run, model = on_mesh(one_sequence_a_device(config_of_run(workdir), mesh), mesh)
    kept = open_folder(workdir / KEPT) if _began_with_folder(workdir) else None
    family = kept.family if kept else family_of(run)
    if differing := disagreements(kept.fields, run) if kept else differences(family, run):
        raise ConfigError(
            f"--workdir={workdir}: a {family.architecture} cannot say {', '.join(differing)}, which the run has"
        )
    run, variables = newest_weights(workdir, run, model)
    types = _types(workdir / KEPT) if kept and not dtype else {}
    most = collections.Counter(types.values()).most_common(1)
    write_folder(
        folder,
        run,
        Weights(variables.params, variables.balance_bias),
        family,
        names[dtype] if dtype else most[0][0] if most else "F32",
        described=kept.described if kept else None,
        dtypes=types,
        carried=kept.path if kept else None,
    )


def newest_weights(workdir: Path, run: RunConfig, model: Model) -> tuple[RunConfig, Variables]:
    """The weights of a run's newest checkpoint, low-rank adapters merged, and the run without these."""
    with Checkpoints(workdir) as checkpoints:
        variables = checkpoints.restore_weights(model.variables)
    if variables is None:
        raise ConfigError(f"--workdir={workdir} has no checkpoint yet: train until checkpoint.every")
    params = merged(variables.params, run.lora) if run.lora.rank else variables.params
    return dataclasses.replace(run, lora=LoraConfig()), variables._replace(params=params)


def on_mesh(config: ml_collections.ConfigDict, sizes: Mapping[str, int]) -> tuple[RunConfig, Model]:
    """The run of a config on a mesh of these sizes, and the shapes of its weights. Its batch has to fit the mesh."""
    unknown = [axis for axis in sizes if axis not in AXES]
    if unknown:
        raise ConfigError(f"--mesh names {unknown[0]!r}, which is no axis of a mesh: give some of {', '.join(AXES)}")
    for axis in AXES:
        config.mesh[axis] = sizes.get(axis, 1)
    run = resolve(config, math.prod(config.mesh.values()))
    return run, build_model(task_of(run), make_mesh(run.mesh))


def one_sequence_a_device(config: ml_collections.ConfigDict, sizes: Mapping[str, int]) -> ml_collections.ConfigDict:
    """The config with a batch that fits any mesh, for where no batch is computed; sequences are groups."""
    config.data.update(batch_size=math.prod(sizes.values()), sequence_length=config.moe.group_size)
    config.train.accumulate = 1
    return config


def config_of_run(workdir: Path) -> ml_collections.ConfigDict:
    """The config of the run in a work directory."""
    written = records.read_fields(workdir)
    config = default_config()
    try:
        config.update_from_flattened_dict({k: tuple(v) if isinstance(v, list) else v for k, v in written.items()})
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"{workdir}: config.json is damaged ({' '.join(str(error).split())}): restore it") from None
    return config


def check_tokenizer(opened: Folder) -> None:
    """Raises ConfigError where the folder's tokenizer has ids that the embedding has no row for."""
    path = opened.path / TOKENIZER
    if not path.is_file():
        return
    try:
        ids = tokenizers.Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True).values()
    except Exception as error:  # the library raises nothing more special
        raise ConfigError(f"{path} is no tokenizer ({error}): download it again") from None
    rows = opened.fields["model.vocab_size"]
    if max(ids, default=-1) >= rows:
        raise ConfigError(
            f"{path} has ids up to {max(ids)} and the model a vocabulary of {rows}: put the tokenizer there that the "
            "model was trained with"
        )


def _keep(opened: Folder, workdir: Path) -> None:
    """Copies what came with the weights into the work directory."""
    kept = workdir / KEPT
    shutil.rmtree(kept, ignore_errors=True)  # of an import that was killed
    tensors = dequantized(open_tensors(opened.path))
    types = {name: tensor.dtype if isinstance(tensor, Stored) else UNQUANTIZED for name, tensor in tensors.items()}
    try:
        kept.mkdir(parents=True, exist_ok=True)
        for name in (CONFIG, *CARRIED):
            if (opened.path / name).is_file():
                shutil.copyfile(opened.path / name, kept / name)
        (kept / TYPES).write_text(json.dumps(types, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise MachineError(f"{kept} cannot be written ({error.strerror or error})") from None


def _began_with_folder(workdir: Path) -> bool:
    """Whether the run's weights came from the folder whose config.json was kept, and not what a killed import left."""
    came_from = records.origin(workdir).get(records.ORIGIN, "")
    return came_from.startswith(FROM_FOLDER) and (workdir / KEPT / CONFIG).is_file()


def _types(kept: Path) -> dict[str, str]:
    try:
        types = json.loads((kept / TYPES).read_text(encoding="utf-8"))
        if not all(stored in NAMES_OF_DTYPES for stored in types.values()):
            raise ValueError
    except (OSError, ValueError, AttributeError):
        raise ConfigError(f"{kept / TYPES} cannot be read: give --dtype, which needs no such file") from None
    return types
