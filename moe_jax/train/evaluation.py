"""Held-out loss, overall and by domain."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.data import Batch
from moe_jax.moe.stats import stats_of_layers
from moe_jax.train.state import Variables
from moe_jax.train.step import EvalSums


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result; a domain without held-out text is left out."""

    loss: float  # nats a token
    bits_per_byte: float
    loss_by_domain: dict[str, float]
    bits_per_byte_by_domain: dict[str, float]
    tokens: int
    dropped_fraction: float  # of the choices of MoE layers, at moe.eval_capacity_factor

    def as_metrics(self) -> dict[str, float]:
        """Names and values for metrics.jsonl."""
        metrics = {
            "eval/loss": self.loss,
            "eval/bits_per_byte": self.bits_per_byte,
            "eval/dropped": self.dropped_fraction,
        }
        metrics |= {f"eval/loss_{name}": loss for name, loss in self.loss_by_domain.items()}
        return metrics | {f"eval/bits_per_byte_{name}": bits for name, bits in self.bits_per_byte_by_domain.items()}

    def as_dict(self) -> dict[str, Any]:
        """For eval.json."""
        return dataclasses.asdict(self)


def evaluate(
    eval_step: Callable[[Variables, Batch], EvalSums],
    variables: Variables,
    batches: Iterable[Batch],
    domains: Sequence[str],
) -> Evaluation:
    """Runs `eval_step` over `batches` (already on the mesh). Every valid target counts once, whatever batch it is in.

    Raises ValueError where there is no target at all.
    """
    total: EvalSums | None = None
    for batch in batches:
        sums = jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(eval_step(variables, batch)))
        total = sums if total is None else jax.tree.map(np.add, total, sums)
    if total is None or not total.tokens.sum():
        raise ValueError("there is no held-out text to evaluate on: raise data.holdout_fraction")
    routing = stats_of_layers(jax.tree.map(jnp.asarray, total.routing)) if total.routing else None
    present = [i for i, tokens in enumerate(total.tokens) if tokens]
    bits = lambda nats, text: float(nats / math.log(2) / max(text, 1))
    return Evaluation(
        loss=float(total.nats.sum() / total.tokens.sum()),
        bits_per_byte=bits(total.nats.sum(), total.bytes.sum()),
        loss_by_domain={domains[i]: float(total.nats[i] / total.tokens[i]) for i in present},
        bits_per_byte_by_domain={domains[i]: bits(total.nats[i], total.bytes[i]) for i in present},
        tokens=int(total.tokens.sum()),
        dropped_fraction=0.0 if routing is None else float(np.mean(routing.dropped)),
    )
