"""Reads the record that a run leaves in its work directory. Nothing here imports JAX, so that reports start fast."""

import json
import math
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

CONFIG = "config.json"
SUMMARY = "summary.json"
FORMAT_FIELD = "format"  # in config.json, beside the fields of the run
METRICS = "metrics.jsonl"
STEP_SECONDS = "train/step_seconds"  # the metric that says how long a training step took
Line = dict[str, int | float]  # of metrics.jsonl: {"step": 20, "train/loss": 5.1, ...}


def read_config(workdir: Path) -> Any:
    """The content of config.json. Raises OSError or ValueError where the file is missing or no JSON."""
    return parse_json((workdir / CONFIG).read_bytes())


def read_summary(workdir: Path) -> dict[str, Any]:
    """The content of summary.json, null read as NaN. Raises OSError or ValueError where there is no such file."""
    content = parse_json((workdir / SUMMARY).read_bytes())
    if not isinstance(content, dict):
        raise ValueError(f"{workdir / SUMMARY} holds no results")
    return _with_nan(content)


def read_lines(workdir: Path) -> list[Line]:
    """The lines of metrics.jsonl, null read as NaN. Raises OSError or ValueError where it is missing or damaged."""
    lines = list(map(parse_line, _text_lines(workdir)))
    if None in lines:
        raise ValueError(f"line {lines.index(None) + 1} of {METRICS} is none that a run has written")
    return [_with_nan(line) for line in lines if line is not None]


def last_line(workdir: Path, name: str) -> dict[str, float]:
    """The newest whole line of metrics.jsonl that holds the number `name`, null read as NaN; {} where there is none."""
    for text in reversed(_text_lines(workdir) if (workdir / METRICS).exists() else []):
        line = parse_line(text)
        if line is not None and name in line:
            return {key: float(value) for key, value in _with_nan(line).items() if isinstance(value, int | float)}
    return {}


def newest_values(workdir: Path, names: Collection[str]) -> Line:
    """The newest value of each metric that metrics.jsonl has one of, null read as NaN, and the newest "step"."""
    found: Line = {}
    for text in reversed(_text_lines(workdir) if (workdir / METRICS).exists() else []):
        values = _with_nan(parse_line(text) or {})
        found = {name: value for name, value in values.items() if name in names or name == "step"} | found
        if found.keys() >= set(names):
            break
    return found


def training_times(lines: Iterable[Line]) -> tuple[list[int], list[float]]:
    """The steps at which training was logged, from 0 on, and the seconds of training until each of them."""
    steps, seconds = [0], [0.0]
    for line in lines:
        if STEP_SECONDS in line:
            step = int(line["step"])
            seconds.append(seconds[-1] + (step - steps[-1]) * float(line[STEP_SECONDS]))
            steps.append(step)
    return steps, seconds


def training_seconds(workdir: Path) -> float:
    """The time spent on the steps of metrics.jsonl, over all lives of the run; 0.0 where there are none."""
    return training_times(read_lines(workdir))[1][-1] if (workdir / METRICS).exists() else 0.0


def parse_line(text: str) -> dict[str, Any] | None:
    """A line of metrics.jsonl as `MetricsWriter` writes it, or None for any other text.

    It has a step, a whole number from 0 on, and every other value is a number, null, or a list of these.
    """
    try:
        line = parse_json(text)
    except ValueError:
        return None
    if not isinstance(line, dict) or not _is_step(line.get("step")):
        return None
    return line if all(_is_value(value) for value in line.values()) else None


def parse_json(text: str | bytes) -> Any:
    """The JSON value of a text. Raises ValueError where it is none, or nested too deep to be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_value(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_value(entry) and not isinstance(entry, list) for entry in value)
    if isinstance(value, int) and abs(value) >= 2**63:  # larger than any float, perhaps
        return False
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _text_lines(workdir: Path) -> list[str]:
    return (workdir / METRICS).read_text(encoding="utf-8", errors="replace").splitlines()


def _with_nan(values: dict[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in values.items()}
