"""A Hugging Face folder: its config.json as a run, and what else it carries."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from moe_jax.config.rules import ConfigError
from moe_jax.config.schema import default_config
from moe_jax.interop.description import Description
from moe_jax.interop.families import ALIASES, FAMILIES, Family

CONFIG = "config.json"
CARRIED = (  # files that an export takes along: tokenizer, chat template, how to generate, licence
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json", "generation_config.json", "LICENSE"),
)


class Folder(NamedTuple):
    """A folder whose config.json is understood."""

    path: Path
    family: Family
    described: dict[str, Any]  # config.json
    fields: dict[str, Any]  # of a run, by dotted name: those of the model


def open_folder(path: Path) -> Folder:
    """Reads config.json. Raises ConfigError where it is missing, of an unknown family, or has a field that matters and
    is not supported, by name.
    """
    described = read_config(path)
    name = described.get("model_type")
    family = FAMILIES.get(ALIASES.get(name, name)) if isinstance(name, str) else None
    if family is None:
        raise ConfigError(f"{path / CONFIG}: model_type={name!r} is not supported, only {', '.join(FAMILIES)} are")
    description = Description(described, str(path / CONFIG))
    try:
        fields = family.read(description)
    except ConfigError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(f"{path / CONFIG} has a field of an impossible value ({error}): correct it") from None
    description.finish()
    return Folder(path, family, described, fields)


def read_config(path: Path) -> dict[str, Any]:
    """config.json as it is. Raises ConfigError where it cannot be read."""
    try:
        described = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no JSON"
        raise ConfigError(f"{path / CONFIG} cannot be read ({reason}): give a Hugging Face folder") from None
    if not isinstance(described, dict):
        raise ConfigError(f"{path / CONFIG} holds no configuration: give a Hugging Face folder")
    return described


def config_of(path: str | Path) -> ml_collections.ConfigDict:
    """The defaults with the model of a Hugging Face folder, to be changed further. Raises ConfigError like
    `open_folder`.
    """
    config = default_config()
    config.update_from_flattened_dict(open_folder(Path(path).expanduser()).fields)
    return config
