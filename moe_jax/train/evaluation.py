"""How well a model does on held-out data."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.moe.measures import MEASURES, stats_of_layers
from moe_jax.tasks.task import Batch, Dataset, Scores
from moe_jax.train.state import Variables

SHOWN = "dropped_fraction"  # the routing statistic of an evaluation, at moe.eval_capacity_factor


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The task's scores, and what routing dropped."""

    scores: Scores
    dropped_fraction: float  # of the choices of MoE layers, at moe.eval_capacity_factor; mean over layers

    @property
    def loss(self) -> float:
        """The score that runs compare by."""
        return self.scores.overall["loss"]

    def as_metrics(self) -> dict[str, float]:
        """Names and values for metrics.jsonl."""
        metrics = {f"eval/{name}": value for name, value in self.scores.overall.items()}
        metrics[f"eval/{SHOWN}"] = self.dropped_fraction
        for name, by_domain in self.scores.by_domain.items():
            metrics |= {f"eval/{name}_{domain}": value for domain, value in by_domain.items()}
        return metrics

    def as_results(self) -> dict[str, Any]:
        """Names and values for summary.json."""
        by_domain = {f"eval_{name}_by_domain": values for name, values in self.scores.by_domain.items()}
        return {f"eval_{name}": value for name, value in self.scores.overall.items()} | by_domain

    def as_dict(self) -> dict[str, Any]:
        """Names and values for eval.json."""
        by_domain = {f"{name}_by_domain": values for name, values in self.scores.by_domain.items()}
        return {**self.scores.overall, **by_domain, **self.scores.counted, SHOWN: self.dropped_fraction}


def evaluate(eval_step: Callable, variables: Variables, batches: Iterable[Batch], data: Dataset) -> Evaluation:
    """Runs `eval_step` over `batches` (already on the mesh). Every target counts once, whatever batch it is in.

    Raises ValueError where there is no target at all.
    """
    total: Any = None
    for batch in batches:
        sums = jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(eval_step(variables, batch)))
        total = sums if total is None else jax.tree.map(np.add, total, sums)
    if total is None:
        raise ValueError("there is no held-out data to evaluate on: raise data.holdout_fraction")
    of_task, routing = total
    ratio = lambda part: {SHOWN: np.asarray(MEASURES[SHOWN].ratio(jax.tree.map(jnp.asarray, part)))}
    dropped = stats_of_layers([ratio(part) for part in routing])[SHOWN] if routing else np.zeros(1)
    return Evaluation(data.scores(of_task), float(np.mean(dropped)))
