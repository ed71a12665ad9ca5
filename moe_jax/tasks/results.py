"""What a finished run is measured by. Each result is declared here once; nothing here imports JAX.

summary.json, sweep.csv, TensorBoard's HParams, the comparison of runs, and the tables and pictures of sweeps loop over
these entries. A new result is one entry in `RESULTS`; if its value is not that of a metric at the last step, the
trainer gives it to `summarize` too.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

LOSS = "eval_loss"  # every task has a result of this name: lower is better, and runs are compared by it
DATA = "data_sha256"  # every task has it too: runs compare if they agree in it


def four_digits(value: int | float) -> str:
    """Four digits after the point, as in 1.4000."""
    return f"{value:.4f}"


def two_digits(value: int | float) -> str:
    """Two digits after the point, as in 1.50."""
    return f"{value:.2f}"


def percent(value: int | float) -> str:
    """A share as a percentage, as in 12.50%."""
    return f"{value:.2%}"


def whole(value: int | float) -> str:
    """A whole number, its thousands apart, as in 1,234."""
    return f"{value:,.0f}"


@dataclasses.dataclass(frozen=True)
class Result:
    """One number that a run ends with, and how it is shown."""

    name: str  # in summary.json and sweep.csv
    header: str = ""  # of its column in tables; a result without one is in no table
    show: Callable[[Any], str] = str  # its text in tables
    unit: str = ""  # stands in brackets behind the header at the axis of a picture
    meaning: str = ""  # one phrase that stands below tables
    metric: str = ""  # the metric in metrics.jsonl whose last value it is; "" where the trainer measures it otherwise
    running_header: str = ""  # its column while cells of a sweep run, from `metric`; "" for none
    task: str | None = None  # the task that it belongs to; None: any run has it
    kind: Literal["measured", "routing", "fixed"] = "measured"  # fixed: by the configuration, so the same for all seeds
    required: bool = False  # a run without it is not compared with others
    is_hparams_metric: bool = False  # whether TensorBoard's HParams dashboard shows it
    by_domain: bool = False  # it is a value for each domain or source of the data, and in summary.json only
    in_sweeps: bool = True  # whether a sweep's table shows it as well, where it has a header

    @property
    def axis(self) -> str:
        """The label of an axis: "held-out loss (nats a token)"."""
        return f"{self.header} ({self.unit})" if self.unit else self.header

    def text(self, value: Any) -> str:
        """The value as a table shows it; "-" for None (the run does not have it) and for what is not finite."""
        missing = value is None or (isinstance(value, float) and not math.isfinite(value))
        return "-" if missing else self.show(value)


RESULTS: tuple[Result, ...] = (  # in the order of sweep.csv's columns
    Result("steps"),
    Result("train_loss", metric="train/loss", running_header="loss", show=four_digits, is_hparams_metric=True),
    Result(
        LOSS,
        header="held-out loss",
        show=four_digits,
        unit="nats a token",
        meaning="held-out loss in nats a token at the end of training",
        metric="eval/loss",
        running_header="held-out",
        task="text",
        required=True,
        is_hparams_metric=True,
    ),
    Result(
        "eval_bits_per_byte",
        header="bits per byte",
        show=four_digits,
        task="text",
        required=True,
        is_hparams_metric=True,
        in_sweeps=False,  # there it would say what the loss says
    ),
    Result("eval_bits_per_byte_by_domain", task="text", by_domain=True),
    Result(
        "dropped_fraction",
        header="dropped",
        show=percent,
        unit="fraction of choices, last step",
        meaning="dropped fraction of the last training step, a mean over MoE layers",
        metric="moe/dropped_fraction",
        kind="routing",
        required=True,
        is_hparams_metric=True,
    ),
    Result(
        "max_violation",
        header="MaxVio",
        show=two_digits,
        unit="0 = balanced",
        meaning="MaxVio of the last steps together (log.every of them, or what remains of train.steps after its last "
        "multiple), a mean over MoE layers",
        metric="moe/max_violation_window",
        kind="routing",
        required=True,
        is_hparams_metric=True,
    ),
    Result(
        "tokens_per_second",
        header="tokens/s",
        show=whole,
        metric="train/tokens_per_second",
        running_header="tokens/s",
        task="text",
        required=True,
        is_hparams_metric=True,
        in_sweeps=False,  # there seconds a step stand
    ),
    Result("epochs_by_source", task="text", by_domain=True),
    Result("training_seconds"),
    Result("startup_seconds"),
    Result("total_params", header="parameters", show=whole, kind="fixed", required=True),
    Result("active_params", show=whole, kind="fixed"),
    Result("flops_per_token", header="FLOPs a token", show=whole, kind="fixed", task="text", required=True),
    Result(DATA, kind="fixed", required=True),
)


@dataclasses.dataclass(frozen=True)
class Terms:
    """The terms on which runs of a task compare."""

    cost: str  # the result that holds the training FLOPs of one unit of data
    units: tuple[str, ...]  # the configuration fields whose product is the units of data in a step
    same: tuple[str, ...]  # the configuration fields that say what the held-out loss is a loss of


TERMS = {
    "text": Terms(
        cost="flops_per_token",
        units=("data.batch_size", "data.sequence_length"),
        same=(
            *("data.source", "data.weights", "data.text_field", "data.tokenizer", "data.sequence_length"),
            *("data.holdout_fraction", "data.max_bytes"),
        ),
    )
}


def results_of(task: str = "text") -> tuple[Result, ...]:
    """The results of a task's runs, in the order of sweep.csv's columns. Raises ValueError for an unknown task."""
    if task not in TERMS:
        raise ValueError(f"{task!r} is not a task with results: declare it in TERMS and RESULTS, as {', '.join(TERMS)}")
    return tuple(result for result in RESULTS if result.task in (None, task))


def loss_of(task: str = "text") -> Result:
    """The result that runs of the task are compared by."""
    return next(result for result in results_of(task) if result.name == LOSS)


def columns(task: str = "text") -> tuple[str, ...]:
    """The results that are one value each, as sweep.csv has them."""
    return tuple(result.name for result in results_of(task) if not result.by_domain)


def required(task: str = "text") -> tuple[str, ...]:
    """The results without which a run is not compared with others."""
    return tuple(result.name for result in results_of(task) if result.required)


def hparams_metrics(task: str = "text") -> tuple[str, ...]:
    """The results that TensorBoard's HParams dashboard shows."""
    return tuple(result.name for result in results_of(task) if result.is_hparams_metric)


def check_values(summary: Mapping[str, Any]) -> None:
    """Raises ValueError, naming it, for a value in a summary that no run writes: what is one number is one."""
    for result in RESULTS:
        value = summary.get(result.name)
        if value is None or result.by_domain or result.name == DATA:
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or (isinstance(value, int) and abs(value) >= 2**63) or (result.kind == "fixed" and value <= 0):
            raise ValueError(f"{result.name} is {str(value)[:40]!r}, which no run has written")


def flops_per_step(config: Mapping[str, Any], summary: Mapping[str, Any], task: str = "text") -> int | float:
    """Training FLOPs of one step, from the flattened configuration and the summary of a run."""
    terms = TERMS[task]
    return summary[terms.cost] * math.prod(config[field] for field in terms.units)


def summarize(measured: Mapping[str, Any], last: Mapping[str, int | float], task: str = "text") -> dict[str, Any]:
    """The content of summary.json: every result of the task, by name.

    Args:
        measured: results by name, as the trainer measured them.
        last: the metrics of the last training step, for results that are not in `measured` and have a metric. Where
            that is not logged, a routing statistic is 0.0 (a dense model routes nothing) and anything else NaN.

    Raises:
        ValueError: a result is in neither.
    """
    summary = {}
    for result in results_of(task):
        if result.name not in measured and not result.metric:
            raise ValueError(f"the run has no value for the result {result.name}: measure it, or name its metric")
        absent = 0.0 if result.kind == "routing" else math.nan
        summary[result.name] = measured[result.name] if result.name in measured else last.get(result.metric, absent)
    return summary
