"""What a finished or running work directory says about its run."""

import json
from pathlib import Path
from typing import Any, NamedTuple


class Point(NamedTuple):
    """One held-out evaluation."""

    step: int
    seconds: float  # of training until then, without compilation, evaluation and checkpoints
    flops: float  # of training until then
    loss: float  # nats a token


class Record(NamedTuple):
    """A run, read from its work directory."""

    name: str
    config: dict[str, Any]
    summary: dict[str, Any]
    curve: list[Point]


def read_record(workdir: Path) -> Record:
    """Reads `workdir`; raises ValueError where it holds no finished run."""
    try:
        config, summary = (json.loads((workdir / name).read_text()) for name in ("config.json", "summary.json"))
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{workdir} holds no finished run ({error}): train it to its end first") from None
    tokens = config["data.batch_size"] * config["data.sequence_length"]
    seconds, step, curve = 0.0, 0, []
    for line in lines:
        if "train/tokens_per_second" in line:
            seconds += (line["step"] - step) * tokens / line["train/tokens_per_second"]
            step = line["step"]
        if "eval/loss" in line:
            flops = float(line["step"]) * tokens * summary["flops_per_token"]
            curve.append(Point(line["step"], seconds, flops, line["eval/loss"]))
    return Record(workdir.name, config, summary, curve)
