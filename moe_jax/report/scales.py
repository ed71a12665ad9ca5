"""Places the values of a swept field on an axis, with their labels."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from moe_jax.report.points import frozen

LOGARITHMIC_FROM = 8.0  # largest over smallest positive value
ROTATED_FROM = 60  # characters of all labels


class Scale(NamedTuple):
    """The axis of a swept field, with one tick for each value."""

    label: str
    places: dict[Any, float]  # value, frozen -> position
    ticks: dict[float, str]  # position -> text
    joined: frozenset[float]  # positions that a line may run through

    def place(self, value: Any) -> float:
        """The position of a value of the field."""
        return self.places[frozen(value)]

    @property
    def aside(self) -> float:
        """A distance that is visible, and small beside the width of the axis."""
        return 0.018 * (max(self.ticks) - min(self.ticks))

    def apply(self, axis) -> None:
        """Labels the x axis of a Matplotlib `Axes`."""
        axis.set_xlabel(self.label)
        crowded = sum(map(len, self.ticks.values())) > ROTATED_FROM
        turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
        axis.set_xticks(list(self.ticks), list(self.ticks.values()), **turned)
        low, high = min(self.ticks), max(self.ticks)
        margin = 0.08 * (high - low) or 1.0
        axis.set_xlim(low - margin, high + margin)


def scale(field: str, values: Sequence[Any]) -> Scale:
    """The scale of a field with these values.

    Numbers from 0 on lie by their size or, if they span a factor of 8, by its base-2 logarithm. All other values stand
    side by side. On a logarithmic scale, 0 has a place of its own left of the others, and no line runs to it.
    """
    values = list(dict.fromkeys(map(frozen, values)))
    if not is_numeric(values):
        places = {value: float(i) for i, value in enumerate(values)}
        return Scale(field, places, _ticks(field, places), frozenset(places.values()))
    values.sort()
    positive = [value for value in values if value > 0]
    spread = positive[-1] / positive[0] if positive else 1.0
    if values[0] < 0 or (spread < LOGARITHMIC_FROM and field != "moe.num_experts"):
        places = {value: float(value) for value in values}
        return Scale(field, places, _ticks(field, places), frozenset(places.values()))
    logarithms = {value: math.log2(value) for value in positive}
    joined = frozenset(logarithms.values())
    left = min(joined) - max(1.0, 0.15 * (max(joined) - min(joined))) if joined else 0.0
    places = {value: logarithms.get(value, left) for value in values}
    return Scale(f"{field} (logarithmic)", places, _ticks(field, places), joined)


def is_numeric(values: Sequence[Any]) -> bool:
    """Whether all values are finite numbers; True and False are not."""
    return all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values)


def _ticks(field: str, places: dict[Any, float]) -> dict[float, str]:
    return {place: _text(field, value) for value, place in places.items()}


def _text(field: str, value: Any) -> str:
    if field == "moe.num_experts" and value == 0:
        return "0 (dense)"
    return f"{value:g}" if isinstance(value, float) else str(value)
