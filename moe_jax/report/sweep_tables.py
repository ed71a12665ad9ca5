"""The tables of a sweep's report. Each function returns a list of Markdown blocks."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from moe_jax.report.markdown import rows
from moe_jax.report.points import PointRuns, SweepResults
from moe_jax.report.records import Record
from moe_jax.report.savings import Saving, savings
from moe_jax.report.seeds import CONFIDENCE, Difference, blocked_tukey, estimate, scatter, tukey
from moe_jax.tasks.results import Result, loss_of, results_of

ALL_PAIRS_UP_TO = 15  # with more of them, only those with the best point and with the baseline are listed
BLOCKED = (
    "Points are compared seed by seed (blocked by seed, Tukey, 95% for all pairs together; it takes the differences of "
    "any two points to scatter alike)."
)
NOT_BLOCKED = (
    "Points are compared by their means alone, as not all have the same seeds (Tukey's HSD, 95% for all pairs "
    "together; it takes seeds to scatter alike at every point)."
)


def best(points: Sequence[PointRuns]) -> PointRuns | None:
    """The point of the lowest mean held-out loss among those of which no run diverged."""
    return min((point for point in points if point.comparable), key=lambda p: np.mean(p.losses), default=None)


def results(sweep: SweepResults) -> list[str]:
    """One row a point, in the order of the grid, the best one marked."""
    fields = list(sweep.names)
    loss, shown = loss_of(sweep.task), _shown(sweep.task)
    header = [*fields, "seeds", loss.header, "95% interval", *(result.header for result in shown)]
    winner = best(sweep.points)
    body = [
        [*(str(point.point.get(field)) for field in fields), *_result(point, point is winner, loss, shown)]
        for point in sweep.points
    ]
    return [
        "## Results",
        "\n".join(rows([*header, "seconds a step"], body)),
        f"Means over seeds. {_meanings([loss, *shown])}; seconds of training, without compilation and evaluation. "
        + _about_intervals(sweep),
    ]


def _shown(task: str) -> list[Result]:
    """The results that have a column besides the loss: those that were measured, then those that are fixed."""
    shown = (result for result in results_of(task) if result.header and result.in_sweeps and result != loss_of(task))
    return sorted(shown, key=lambda result: result.kind == "fixed")


def _meanings(columns: Sequence[Result]) -> str:
    text = "; ".join(result.meaning for result in columns if result.meaning)
    return text[:1].upper() + text[1:]


def _result(point: PointRuns, winner: bool, loss: Result, shown: Sequence[Result]) -> list[str]:
    seeds = f"{len(point.runs)}" if len(point.runs) == len(point.cells) else f"{len(point.runs)} of {len(point.cells)}"
    if not point.runs:
        return [seeds, "not finished", "-", *("-" for _ in shown), "-"]
    records = list(point.runs.values())
    mean = estimate(point.losses)
    diverged = sum(not math.isfinite(value) for value in point.losses)
    text = f"diverged ({diverged} of {len(records)})" if diverged else loss.text(mean.mean)
    return [
        seeds,
        f"**{text}** (best)" if winner else text,
        f"{mean.low:.4f} to {mean.high:.4f}" if math.isfinite(mean.low) else "-",
        *(_mean(result, records) for result in shown),
        f"{np.mean([record.step_seconds for record in records]):.3g}",
    ]


def _mean(result: Result, records: Sequence[Record]) -> str:
    """The mean of a result over the runs; "-" where a run does not have it, as one trained before it was there."""
    values = [record.summary.get(result.name) for record in records]
    known = [value for value in values if value is not None]
    return result.text(float(np.mean(known)) if len(known) == len(values) else None)


def _about_intervals(sweep: SweepResults) -> str:
    counts = {len(point.runs) for point in sweep.points if point.runs}
    if counts == {1}:
        return "One seed a point: no interval can be given."
    text = "Intervals are percentile bootstraps over seeds."
    if counts & {2, 3}:
        text += (
            " Over 2 or 3 seeds such an interval is just from the lowest to the highest of them, and too narrow: it "
            "holds the true mean in about 50% or 75% of cases, not in 95%."
        )
    return text + (" Over one seed there is none." if 1 in counts else "")


def differences(sweep: SweepResults, against: Sequence[PointRuns | None] | None) -> list[str]:
    """Tukey's test of all pairs of points that have at least two seeds, none of them diverged.

    It is blocked by seed where all these points have the same seeds, since runs of one seed have the same data order.
    """
    heading = "## Which differences the seeds support"
    diverged = [point.label for point in sweep.points if point.runs and not point.comparable]
    notes = [f"Left out because a run of theirs diverged: {'; '.join(diverged)}."] if diverged else []
    tested = [point for point in sweep.points if point.comparable and len(point.runs) > 1]
    single = [point.label for point in sweep.points if point.comparable and len(point.runs) == 1]
    if len(tested) < 2:
        return [heading, "Nothing can be said: it takes two points of two finished seeds each.", *notes]
    if single:
        notes.append(f"Left out because one seed says nothing about chance: {'; '.join(single)}.")
    blocked = len({tuple(point.runs) for point in tested}) == 1
    losses = [point.losses for point in tested]
    pairs = blocked_tukey(np.array(losses)) if blocked else tukey(losses)
    if not pairs:
        return [heading, "Nothing can be said: differences between points do not scatter over seeds.", *notes]
    if blocked:
        notes += _unequal_scatter(np.array(losses))
    supported = sum(pair.supported for pair in pairs)
    return [
        heading,
        f"The seeds support a difference in held-out loss for {supported} of {len(pairs)} pairs of points, and for no "
        f"other. {BLOCKED if blocked else NOT_BLOCKED}",
        *_pairs(sweep, tested, pairs, against),
        *notes,
    ]


def _unequal_scatter(losses: Float[np.ndarray, "P S"]) -> list[str]:
    found = scatter(losses)
    if found.p_value >= 1 - CONFIDENCE:
        return []
    return [
        f"Differences of two points scatter unequally over the seeds: standard deviations of {found.least:.4f} to "
        f"{found.most:.4f}, a ratio that equal ones have with a probability of {found.p_value:.2g}. All intervals have "
        "one width, which is then too large for the pairs that scatter least and too small for the others: look at "
        "their seeds in sweep.csv."
    ]


def _pairs(
    sweep: SweepResults, tested: list[PointRuns], pairs: list[Difference], against: Sequence[PointRuns | None] | None
) -> list[str]:
    labels = [point.label for point in tested]
    references: dict[int, set[int]] = {id(point): set() for point in tested}
    winner = best(tested)
    for point, baseline in zip(sweep.points, against or [None] * len(sweep.points), strict=True):
        if id(point) in references:
            references[id(point)] |= {id(winner), id(baseline)}
    listed = []
    for pair in pairs:
        first, second = id(tested[pair.first]), id(tested[pair.second])
        if second in references[first]:
            listed.append(pair)
        elif first in references[second]:
            listed.append(Difference(pair.second, pair.first, -pair.mean, -pair.high, -pair.low, pair.p_value))
        elif len(pairs) <= ALL_PAIRS_UP_TO or not pair.supported:
            listed.append(pair)
    listed.sort(key=lambda pair: (not pair.supported, -abs(pair.mean)))
    body = [
        [
            labels[pair.first],
            labels[pair.second],
            f"{pair.mean:+.4f}",
            f"{pair.low:+.4f} to {pair.high:+.4f}",
            "yes" if pair.supported else "**no**",
        ]
        for pair in listed
    ]
    table = "\n".join(rows(["point", "against", "difference", "95% interval", "supported"], body))
    if len(listed) == len(pairs):
        return [table]
    return [
        table,
        f"Listed are pairs with the best of the tested points{', with the baseline' if against else ''}, and all that "
        "the seeds do not support.",
    ]


def needs(sweep: SweepResults, against: Sequence[PointRuns | None]) -> list[str]:
    """How many times fewer steps and FLOPs, and less time, each point needs to reach its baseline's final loss."""
    distinct = {id(baseline): baseline for baseline in against if baseline is not None}
    body = []
    for point, baseline in zip(sweep.points, against, strict=True):
        if id(point) in distinct or not point.runs:
            continue
        name = baseline.label if baseline else "none in the sweep"
        body.append([point.label, name, *_need(savings(point, baseline) if baseline else [])])
    header = ["point", "baseline", "reached by", "fewer steps", "fewer FLOPs", "less time"]
    return [
        "## To the baseline's held-out loss",
        "\n".join(rows(header, body)),
        "Each run against the baseline's run of the same seed; where there is none, against the baseline's mean. Mean "
        "and range over the seeds, where all reach the baseline's final loss. Below 1x is more, not fewer.",
    ]


def _need(found: list[Saving | None]) -> list[str]:
    reached = [saving for saving in found if saving is not None]
    if not found:
        return ["the baseline has no final loss", "-", "-", "-"]
    if not reached:
        return ["not reached", "-", "-", "-"]
    if len(reached) < len(found):  # a mean over those that got there would flatter the point
        return [f"{len(reached)} of {len(found)}", "-", "-", "-"]
    return [f"{len(reached)} of {len(found)}", *(_spread(values) for values in zip(*reached, strict=True))]


def _spread(values: Sequence[float]) -> str:
    mean = f"{np.mean(values):.2f}x"
    return mean if len(values) == 1 else f"{mean} ({min(values):.2f} to {max(values):.2f})"


def unfinished(sweep: SweepResults) -> list[str]:
    """The cells that no figure includes, and why."""
    body = [[cell.name, cell.status, cell.error or "-"] for cell in sweep.cells if cell.status != "finished"]
    return ["## Cells that are not finished", "\n".join(rows(["cell", "status", "error"], body))] if body else []
