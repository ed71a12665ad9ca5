"""What is known of a family of models: how its config.json reads here, and where its weights are."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from moe_jax.config.schema import RunConfig
from moe_jax.interop.description import Description
from moe_jax.interop.table import Table

Fields = dict[str, Any]  # of a run, by dotted name


@dataclasses.dataclass(frozen=True)
class Family:
    """One `model_type` of Hugging Face's."""

    model_type: str
    architecture: str  # the class that loads it there
    read: Callable[[Description], Fields]  # config.json -> fields of model, attention and moe
    write: Callable[[RunConfig], Mapping[str, Any]]  # the way back
    table: Table
    without_counterpart: tuple[str, ...] = ()  # patterns of tensors that no logits depend on
