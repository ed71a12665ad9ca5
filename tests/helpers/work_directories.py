"""Work directories as training leaves them, without the training: batches of 2 x 5 tokens, evaluated every 10 steps."""

import json

from moe_jax.report.points import CellResult

SUMMARY = {
    "eval_bits_per_byte": 1.25,
    "tokens_per_second": 50.0,
    "flops_per_token": 7,
    "total_params": 3,
    "dropped_fraction": 0.0,
    "max_violation": 0.0,
    "data_sha256": "same",
}


def write_run(workdir, losses, speed=50.0, config=None, **summary):
    """A finished run at `speed` tokens a second whose held-out losses were `losses`, None where it had diverged."""
    workdir.mkdir(parents=True)
    config = {"data.batch_size": 2, "data.sequence_length": 5, **(config or {})}
    (workdir / "config.json").write_text(json.dumps(config))
    (workdir / "summary.json").write_text(json.dumps({**SUMMARY, "eval_loss": losses[-1], **summary}))
    lines = []
    for i, loss in enumerate(losses, start=1):
        lines.append({"step": 10 * i, "train/loss": loss, "train/step_seconds": 10 / speed})
        lines.append({"step": 10 * i, "eval/loss": loss})
    write_metrics(workdir, lines)
    return workdir


def write_metrics(workdir, lines):
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def cell(root, point, seed, losses, speed=50.0, **summary):
    """A finished cell of a sweep in `root`."""
    name = ",".join(f"{field}={value}" for field, value in [*point.items(), ("seed", seed)])
    workdir = write_run(root / "cells" / name, losses, speed, {**point, "seed": seed}, **summary)
    return CellResult(name, point, seed, "finished", "", workdir)


def unfinished(root, point, seed, status, error=""):
    """A cell that has no summary."""
    name = ",".join(f"{field}={value}" for field, value in [*point.items(), ("seed", seed)])
    return CellResult(name, point, seed, status, error, root / "cells" / name)
