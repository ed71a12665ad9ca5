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
    return json.loads((workdir / CONFIG).read_text())


def read_summary(workdir: Path) -> dict[str, Any]:
    """The content of summary.json, null read as NaN. Raises OSError or ValueError where there is no such file."""
    content = json.loads((workdir / SUMMARY).read_text())
    if not isinstance(content, dict):
        raise ValueError(f"{workdir / SUMMARY} holds no results")
    return _with_nan(content)


def read_lines(workdir: Path) -> list[Line]:
    """The lines of metrics.jsonl, null read as NaN. Raises OSError or ValueError where it is missing or damaged."""
    return [_with_nan(json.loads(line)) for line in _text_lines(workdir)]


def last_line(workdir: Path, name: str) -> dict[str, float]:
    """The newest whole line of metrics.jsonl that holds `name`, null read as NaN; {} where there is none."""
    for line in reversed(_text_lines(workdir) if (workdir / METRICS).exists() else []):
        values = {} if math.isinf(step_of(line)) else json.loads(line)
        if name in values:
            return {key: float(value) for key, value in _with_nan(values).items()}
    return {}


def newest_values(workdir: Path, names: Collection[str]) -> Line:
    """The newest value of each metric that metrics.jsonl has one of, null read as NaN, and the newest "step"."""
    found: Line = {}
    for line in reversed(_text_lines(workdir) if (workdir / METRICS).exists() else []):
        values = {} if math.isinf(step_of(line)) else _with_nan(json.loads(line))
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


def step_of(line: str) -> int | float:
    """The step of a line of metrics.jsonl; infinite if the process was killed while writing the line."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


def _text_lines(workdir: Path) -> list[str]:
    return (workdir / METRICS).read_text(encoding="utf-8").splitlines()


def _with_nan(values: dict[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in values.items()}
