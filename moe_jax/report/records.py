"""What the work directory of a finished run says about it."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moe_jax.journal.reading import (
    FORMAT_FIELD,
    STEP_SECONDS,
    Line,
    read_config,
    read_lines,
    read_summary,
    training_times,
)
from moe_jax.tasks.results import DATA, TERMS, check_values, flops_per_step, loss_of, required


class CurvePoint(NamedTuple):
    """One held-out evaluation on the curve of a run, or a place between two of them."""

    step: float
    seconds: float  # of training until then, without compilation, evaluation and checkpoints
    flops: float  # of training until then
    loss: float  # in the unit of the task; NaN where the run had diverged


class Record(NamedTuple):
    """A run, read from its work directory."""

    name: str
    config: dict[str, Any]  # flattened
    summary: dict[str, Any]  # null is NaN
    curve: list[CurvePoint]  # at least one

    @property
    def task(self) -> str:
        """What was trained; runs from before there were several tasks were trained on text."""
        return task_of(self.config)

    @property
    def step_seconds(self) -> float:
        """Mean seconds of training a step."""
        return self.curve[-1].seconds / self.curve[-1].step


def read_record(workdir: Path) -> Record:
    """Reads `workdir`. Raises ValueError where it holds no finished run, or one without times or evaluations."""
    try:
        config, summary, lines = read_config(workdir), read_summary(workdir), read_lines(workdir)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{workdir} holds no finished run that can be read ({error}): train it to its end, or delete it and train "
            "it again"
        ) from None
    is_run = isinstance(config, dict) and isinstance(config.get("task", ""), str)
    task = task_of(config) if is_run else None
    if task not in TERMS or any(field not in config for field in TERMS[task].units):
        raise ValueError(f"{workdir}: config.json is not that of a run of moe_jax: name another directory")
    missing = [name for name in required(task) if name not in summary]
    if missing:
        raise ValueError(f"{workdir}: summary.json lacks {', '.join(missing)}: train the run again")
    try:
        check_values(summary)
    except ValueError as error:
        raise ValueError(f"{workdir}: summary.json is damaged ({error}): train the run again") from None
    curve = _curve(workdir, lines, flops_per_step(config, summary, task), loss_of(task).metric)
    if curve[-1].step != summary.get("steps", curve[-1].step):
        raise ValueError(
            f"{workdir}: metrics.jsonl ends at step {curve[-1].step} and summary.json at {summary['steps']}: delete "
            "the directory and train the run again"
        )
    fields = {name: value for name, value in config.items() if name != FORMAT_FIELD}
    return Record(workdir.name, fields, summary, curve)


def task_of(config: Mapping[str, Any]) -> str:
    """The task of a flattened configuration."""
    return config.get("task", "text")


def check_same_data(records: Sequence[Record]) -> None:
    """Raises ValueError where the runs were not trained and evaluated on the same data, for the same task."""
    first = records[0]
    for record in records:
        if record.task != first.task:
            raise ValueError(
                f"{first.name} and {record.name} have different tasks ({first.task} and {record.task}): their losses "
                "do not compare; leave one of them out"
            )
        if record.summary[DATA] != first.summary[DATA]:
            raise ValueError(
                f"{first.name} and {record.name} have different data ({DATA} in summary.json): their losses do not "
                "compare; leave one of them out"
            )


def _curve(workdir: Path, lines: Sequence[Line], step_flops: int | float, loss: str) -> list[CurvePoint]:
    """The evaluations among the lines of metrics.jsonl, those with the metric `loss`. Between two logged steps, time
    passes evenly.
    """
    unknown = "so the run's time is unknown: leave the run out, or train it again"
    for line in lines:
        took = line.get(STEP_SECONDS, 1.0)
        if not isinstance(took, int | float) or not took > 0:
            value = "null" if isinstance(took, float) and math.isnan(took) else took
            raise ValueError(f"{workdir}: metrics.jsonl has {STEP_SECONDS} {value} at step {line['step']}, {unknown}")
    if not any(STEP_SECONDS in line for line in lines):
        raise ValueError(f"{workdir}: metrics.jsonl has no {STEP_SECONDS}, {unknown}")
    steps, seconds = training_times(lines)
    evaluations = [(int(line["step"]), line[loss]) for line in lines if loss in line]
    if not evaluations:
        raise ValueError(f"{workdir}: metrics.jsonl has no evaluation ({loss}): leave the run out, or train it again")
    return [
        CurvePoint(step, float(np.interp(step, steps, seconds)), float(step) * step_flops, float(value))
        for step, value in evaluations
    ]
