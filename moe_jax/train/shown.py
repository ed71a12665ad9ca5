"""From a step's metrics to names and numbers: what metrics.jsonl and TensorBoard show of a step."""

from typing import SupportsFloat

import numpy as np

from moe_jax.journal.figures import expert_load_image
from moe_jax.journal.metrics import MetricsWriter
from moe_jax.moe.measures import PROBABILITY_BINS, scalars, stats_of_layers
from moe_jax.train.step import StepMetrics


def curves(metrics: StepMetrics) -> dict[str, float]:
    """Scalars of one step, on the host; routing statistics are means over MoE layers unless the name says otherwise."""
    values: dict[str, SupportsFloat] = {
        "train/loss": metrics.loss,
        "train/grad_norm": metrics.grad_norm,
        "train/learning_rate": metrics.learning_rate,
    }
    if metrics.routing:
        values |= {f"moe/{name}": value for name, value in metrics.auxiliary.items()}
        values |= {f"moe/{name}": value for name, value in scalars(stats_of_layers(metrics.routing))}
        values["moe/max_violation_micro_batch"] = np.mean(np.asarray(metrics.max_violation_micro_batch))
        values["moe/max_violation_window"] = np.mean(np.asarray(metrics.max_violation_window))
    return {name: float(value) for name, value in values.items()}


def write_pictures(writer: MetricsWriter, step: int, metrics: StepMetrics) -> None:
    """Expert load by layer as an image, and histograms of the chosen experts' router probabilities."""
    if not metrics.routing:
        return
    stats = stats_of_layers(metrics.routing)
    writer.image(step, "moe/load", expert_load_image(stats["load"]))
    edges = np.linspace(0, 1, PROBABILITY_BINS + 1)
    for layer, counts in enumerate(stats["probability"]):
        writer.histogram(step, f"moe/probability_layer_{layer}", edges, counts)


def write_loads(writer: MetricsWriter, step: int, metrics: StepMetrics) -> None:
    """The load of each layer's experts in multiples of the mean: an array in metrics.jsonl, and a histogram."""
    loads = [load for part in metrics.routing for load in np.asarray(part["load"])]
    if loads:
        writer.arrays(step, {f"moe/load/layer_{layer:02}": load for layer, load in enumerate(loads)})
