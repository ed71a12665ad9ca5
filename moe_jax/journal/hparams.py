"""Configurations as the hyperparameters that TensorBoard's HParams dashboard shows."""

from collections.abc import Mapping
from typing import Any


def hparams(values: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Flattened configuration values as the HParams plugin takes them. Lists and other values become text."""
    return {
        name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in values.items()
    }
