"""What happens to each document of an index: duplicates go, some are held out, the others are trained on.

A hash of the documents' names decides, so that neither their order nor their number moves a document from one side to
the other. Everything is found by scans of the index; what is in memory at a time does not grow with it, but for what is
said of `mark_lowest` and `deduplicate`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from moe_jax.config.rules import ConfigError
from moe_jax.data.index import HELDOUT, KEPT, TOKENIZER, TRAIN, Index, Records

BINS = 4096  # of hashes
PARTITION = 1 << 20  # documents whose hashes are compared at once


def check_holdout_fraction(fraction: float | int) -> None:
    """Raises ConfigError unless 0 < fraction < 1."""
    if not 0 < fraction < 1:
        raise ConfigError(f"data.holdout_fraction={fraction} is outside (0, 1): 0.05 holds out one file in 20")


def deduplicate(index: Index, directory: Path) -> int:
    """Marks the first of the documents with the same text as KEPT, over all sources; returns how many are not.

    The hashes are compared a million at a time, each of them with all that could be the same: they are sorted into
    files in `directory` by their first bits.
    """
    partitions = -(-len(index) // PARTITION)
    hashed = np.dtype([("high", "u8"), ("low", "u8"), ("position", "u8")])
    paths = [directory / f"hashes_{p}" for p in range(partitions)]
    for positions, records in index.chunks():
        rows = np.empty(len(records), hashed)
        rows["high"], rows["low"] = records["text_high"], records["text_low"]
        rows["position"] = np.arange(positions.start, positions.stop)
        partition = (rows["high"] >> np.uint64(32)) * np.uint64(partitions) >> np.uint64(32)
        for p, path in enumerate(paths):
            with path.open("ab") as file:
                file.write(rows[partition == p].tobytes())
    kept = 0
    for path in paths:
        rows = np.fromfile(path, hashed)
        path.unlink()
        rows = rows[np.lexsort((rows["position"], rows["low"], rows["high"]))]
        first = np.ones(len(rows), bool)
        first[1:] = (rows["high"][1:] != rows["high"][:-1]) | (rows["low"][1:] != rows["low"][:-1])
        index.flags[rows["position"][first]] |= KEPT
        kept += int(first.sum())
    return len(index) - kept


def hold_out(index: Index, fraction: float | int) -> None:
    """Marks `fraction` of each domain's kept documents as HELDOUT, those whose names hash lowest, and others as TRAIN.

    Each source is split by itself. The number is rounded to whole documents, but a domain with more than one document
    always has one held out and never all. A fraction of 0 holds out nothing. Neither the order of the documents nor
    their content matters, and a document added to a domain moves at most those at the border. Raises ConfigError unless
    0 <= fraction < 1.
    """
    if fraction:
        check_holdout_fraction(fraction)
    domains = len(index.domains)
    for span in index.spans:
        counts = np.zeros(domains, np.int64)
        for positions, records in index.chunks(span):
            counts += np.bincount(records["domain"][_has(index, positions, KEPT)], minlength=domains)
        budgets = [min(max(round(fraction * n), 1), n - 1) if fraction and n else 0 for n in counts.tolist()]
        mark_lowest(index, span, KEPT, "holdout", budgets, lambda records: records["domain"], _one_each, HELDOUT)
        for positions, _ in index.chunks(span):
            train = _has(index, positions, KEPT) & ~_has(index, positions, HELDOUT)
            index.flags[positions] |= TRAIN * train.astype(np.uint8)


def sample_training(index: Index, max_bytes: float | int) -> None:
    """Takes the flag TRAIN from all but a sample of about `max_bytes`, shared out by the sizes of the sources.

    See `sample`. `max_bytes` 0 leaves all documents.
    """
    if max_bytes:
        sample(index, max_bytes, TRAIN, TOKENIZER)
        for positions, _ in index.chunks():
            chosen = _has(index, positions, TOKENIZER)
            index.flags[positions] &= ~(TRAIN | TOKENIZER)
            index.flags[positions] |= TRAIN * chosen.astype(np.uint8)


def sample(index: Index, max_bytes: float | int, among: np.uint8, mark: np.uint8) -> None:
    """Marks the documents whose names hash lowest, until they make up `max_bytes`; the last one may exceed it.

    Each source gets its share by the size of its documents that have the flag `among`. A smaller sample is part of
    every larger one, and none is empty.
    """
    sizes = [_size(index, span, among) for span in index.spans]
    for span, size in zip(index.spans, sizes, strict=True):
        if size:
            budget = max_bytes * size / sum(sizes)
            everything: Callable[[Records], Any] = lambda records: np.zeros(len(records), np.int32)
            mark_lowest(index, span, among, "sample", [budget], everything, lambda records: records["length"], mark)


def mark_lowest(
    index: Index,
    span: range,
    among: np.uint8,
    purpose: str,
    budgets: Sequence[float | int],
    group: Callable[[Records], Any],
    measure: Callable[[Records], Any],
    mark: np.uint8,
) -> None:
    """Marks, in each group g, the documents that rank lowest until their measures add up to budgets[g].

    Two scans: the first adds up the measures in bins of hashes, which tells the bin that the border is in; the second
    marks what lies before it, and sorts what lies in it, 1 in 4096 of the documents.
    """
    shift, high, low = np.uint64(64 - BINS.bit_length() + 1), f"{purpose}_high", f"{purpose}_low"
    totals = np.zeros((len(budgets), BINS), np.int64)
    for positions, records in index.chunks(span):
        chosen = records[_has(index, positions, among)]
        np.add.at(totals, (group(chosen), (chosen[high] >> shift).astype(np.int64)), measure(chosen))
    border, before = _borders(totals, np.array(budgets, np.float64))
    found = []
    for positions, records in index.chunks(span):
        chosen, at = records[_has(index, positions, among)], np.flatnonzero(_has(index, positions, among))
        bins = (chosen[high] >> shift).astype(np.int64)
        at += positions.start
        index.flags[at[bins < border[group(chosen)]]] |= mark
        on = bins == border[group(chosen)]
        found.append((group(chosen)[on], chosen[high][on], chosen[low][on], at[on], measure(chosen)[on]))
    groups, highs, lows, at, sizes = (np.concatenate(parts) for parts in zip(*found, strict=True))
    for g, budget in enumerate(budgets):
        here = np.flatnonzero(groups == g)
        here = here[np.lexsort((at[here], lows[here], highs[here]))]
        so_far = before[g] + np.cumsum(sizes[here]) - sizes[here]
        index.flags[at[here[so_far < budget]]] |= mark


def _borders(
    totals: Int64[np.ndarray, "groups bins"], budgets: Float64[np.ndarray, " groups"]
) -> tuple[Int64[np.ndarray, " groups"], Int64[np.ndarray, " groups"]]:
    """The first bin of each group that does not fit its budget wholly, and the sum of the bins before it."""
    sums = np.cumsum(totals, axis=1)
    border = (sums < budgets[:, None]).sum(axis=1)
    return border, np.where(border > 0, sums[np.arange(len(sums)), border - 1], 0)


def _one_each(records: Records) -> Int64[np.ndarray, " records"]:
    return np.ones(len(records), np.int64)


def _size(index: Index, span: range, flag: np.uint8) -> int:
    parts = index.chunks(span)
    return sum(int(records["length"][_has(index, positions, flag)].sum()) for positions, records in parts)


def _has(index: Index, positions: slice, flag: np.uint8) -> Bool[np.ndarray, " records"]:
    return (index.flags[positions] & flag) > 0
