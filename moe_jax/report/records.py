"""What a finished or running work directory says about its run."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

RESULTS = (
    "eval_loss",  # nats a token, held-out
    "eval_bits_per_byte",
    "tokens_per_second",
    "total_params",
    "flops_per_token",
    "dropped_fraction",
    "max_violation",
    "data_sha256",
)


class CurvePoint(NamedTuple):
    """One held-out evaluation."""

    step: int
    seconds: float  # of training until then, without compilation, evaluation and checkpoints
    flops: float  # of training until then
    loss: float  # nats a token; NaN where the run had diverged


class Record(NamedTuple):
    """A run, read from its work directory."""

    name: str
    config: dict[str, Any]
    summary: dict[str, Any]  # null is NaN
    curve: list[CurvePoint]  # at least one

    @property
    def step_seconds(self) -> float:
        """Mean seconds of training a step."""
        return self.curve[-1].seconds / self.curve[-1].step


def read_record(workdir: Path) -> Record:
    """Reads `workdir`; raises ValueError where it holds no finished run, or one without times or evaluations."""
    try:
        config, summary = (json.loads((workdir / name).read_text()) for name in ("config.json", "summary.json"))
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        tokens = config["data.batch_size"] * config["data.sequence_length"]
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{workdir} holds no finished run that can be read ({error}): train it to its end, or delete it and train "
            "it again"
        ) from None
    except (KeyError, TypeError):
        raise ValueError(f"{workdir}: config.json is not that of a run of moe_jax: name another directory") from None
    missing = [name for name in RESULTS if name not in summary]
    if missing:
        raise ValueError(f"{workdir}: summary.json lacks {', '.join(missing)}: train the run again")
    summary = {name: math.nan if value is None else value for name, value in summary.items()}
    curve = _curve(workdir, lines, tokens, summary["flops_per_token"])
    if curve[-1].step != summary.get("steps", curve[-1].step):
        raise ValueError(
            f"{workdir}: metrics.jsonl ends at step {curve[-1].step} and summary.json at {summary['steps']}: delete "
            "the directory and train the run again"
        )
    return Record(workdir.name, config, summary, curve)


def check_same_data(records: Sequence[Record]) -> None:
    """Raises ValueError where the runs were not trained and evaluated on the same text."""
    first = records[0]
    for record in records:
        if record.summary["data_sha256"] != first.summary["data_sha256"]:
            raise ValueError(
                f"{first.name} and {record.name} have different data (data_sha256 in summary.json): their losses do "
                "not compare; leave one of them out"
            )


def _curve(workdir: Path, lines: list[dict[str, Any]], tokens: int, flops_per_token: int) -> list[CurvePoint]:
    """The evaluations among the lines of metrics.jsonl; between two logged steps, time passes evenly."""
    steps, seconds, evaluations = [0], [0.0], []
    for line in lines:
        if "train/tokens_per_second" in line:
            rate = line["train/tokens_per_second"]
            if not rate:
                raise ValueError(
                    f"{workdir}: metrics.jsonl has train/tokens_per_second {json.dumps(rate)} at step {line['step']}, "
                    "so the run's time is unknown: leave the run out, or train it again"
                )
            seconds.append(seconds[-1] + (line["step"] - steps[-1]) * tokens / rate)
            steps.append(line["step"])
        if "eval/loss" in line:
            evaluations.append((line["step"], math.nan if line["eval/loss"] is None else line["eval/loss"]))
    if not evaluations:
        raise ValueError(
            f"{workdir}: metrics.jsonl has no evaluation (eval/loss): leave the run out, or train it again"
        )
    return [
        CurvePoint(step, float(np.interp(step, steps, seconds)), float(step) * tokens * flops_per_token, loss)
        for step, loss in evaluations
    ]
