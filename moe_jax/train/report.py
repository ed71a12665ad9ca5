"""From a step's metrics to names and numbers in metrics.jsonl, TensorBoard and summary.json."""

import dataclasses
import math
from typing import Any

import numpy as np

from moe_jax.config.schema import RunConfig
from moe_jax.journal.figures import expert_load_image
from moe_jax.journal.metrics import MetricsWriter
from moe_jax.moe.stats import PROBABILITY_BINS
from moe_jax.resolve.counting import count
from moe_jax.tasks.results import hparams_metrics
from moe_jax.train.evaluation import Evaluation
from moe_jax.train.step import StepMetrics

HPARAMS_METRICS = hparams_metrics("text")


def scalars(metrics: StepMetrics) -> dict[str, float]:
    """Scalars of one step; routing statistics are means over MoE layers unless the name says otherwise."""
    values = {
        "train/loss": metrics.loss,
        "train/grad_norm": metrics.grad_norm,
        "train/learning_rate": metrics.learning_rate,
    }
    routing = metrics.routing
    if routing is None:
        return {name: float(value) for name, value in values.items()}
    values |= {
        "moe/balance_loss": metrics.balance_loss,
        "moe/z_loss": metrics.z_loss,
        "moe/dropped": np.mean(routing.dropped),
        "moe/passed_through": np.mean(routing.passed_through),
        "moe/max_violation": np.mean(routing.max_violation),
        "moe/max_violation_micro_batch": np.mean(metrics.max_violation_micro_batch),
        "moe/max_violation_window": np.mean(metrics.max_violation_window),
        "moe/router_entropy": np.mean(routing.entropy),
    }
    weighted = {"moe/importance_loss": metrics.importance_loss, "moe/load_loss": metrics.load_loss}
    values |= {name: value for name, value in weighted.items() if value is not None}
    values |= {f"moe/dropped_layer_{i}": value for i, value in enumerate(routing.dropped)}
    values |= {f"moe/max_violation_layer_{i}": value for i, value in enumerate(routing.max_violation)}
    values |= {f"moe/dropped_rank_{k}": value for k, value in enumerate(np.nanmean(routing.dropped_by_rank, axis=0))}
    values |= {
        f"moe/dropped_position_{p}": value for p, value in enumerate(np.mean(routing.dropped_by_position, axis=0))
    }
    return {name: float(value) for name, value in values.items()}


def write_pictures(writer: MetricsWriter, step: int, metrics: StepMetrics) -> None:
    """Expert load by layer as an image, and histograms of the chosen experts' router probabilities."""
    if metrics.routing is None:
        return
    writer.image(step, "moe/load", expert_load_image(metrics.routing.load))
    edges = np.linspace(0, 1, PROBABILITY_BINS + 1)
    for layer, counts in enumerate(metrics.routing.probability_histogram):
        writer.histogram(step, f"moe/probability_layer_{layer}", edges, counts)


@dataclasses.dataclass
class Totals:
    """What a summary needs beyond the last step's metrics."""

    steps: int
    tokens_per_second: float
    seconds: float  # of training, all lives of the run, without compilation and evaluation
    startup_seconds: float  # from the start of the set-up until the first step was done, compilation included
    data_sha256: str


def summary(run: RunConfig, totals: Totals, last: dict[str, float], evaluation: Evaluation) -> dict[str, Any]:
    """The content of summary.json; `max_violation` is that of the last steps together, see `StepMetrics`."""
    counts = count(run)
    return {
        "steps": totals.steps,
        "train_loss": last.get("train/loss", math.nan),
        "eval_loss": evaluation.loss,
        "eval_bits_per_byte": evaluation.bits_per_byte,
        "eval_bits_per_byte_by_domain": evaluation.bits_per_byte_by_domain,
        "tokens_per_second": totals.tokens_per_second,
        "training_seconds": totals.seconds,
        "startup_seconds": totals.startup_seconds,
        "total_params": counts.total_params,
        "active_params": counts.active_params,
        "flops_per_token": counts.flops_per_token,
        "dropped_fraction": last.get("moe/dropped", 0.0),
        "max_violation": last.get("moe/max_violation_window", 0.0),
        "data_sha256": totals.data_sha256,
    }
