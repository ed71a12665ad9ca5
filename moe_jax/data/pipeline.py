"""Batches: an endless, shuffled, resumable iterator for training, and a fixed sequence for evaluation."""

import bisect
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np
from jaxtyping import Bool, Int32

from moe_jax.config.schema import DataConfig
from moe_jax.data.corpus import Corpus
from moe_jax.data.mixture import proportions
from moe_jax.data.packing import Row

THREADS = 1  # that gather rows beside the step: they hold the interpreter most of the time, and more take turns at it
PREFETCH = 16  # batches that are made ahead of the step


class Batch(NamedTuple):
    """The sequences of one step; see `Row`. The loss counts the positions that are `scored`."""

    ids: Int32[np.ndarray, "B L"]
    targets: Int32[np.ndarray, "B L"]
    documents: Int32[np.ndarray, "B L"]  # which of its row's documents a target belongs to, from 1; 0: padding
    scored: Bool[np.ndarray, "B L"]
    domain: Int32[np.ndarray, " B"]  # index into corpus.domains; a training row has that of its first target


class TrainBatches(Iterator[Batch]):
    """Endless batches of one process, from a position that can be set.

    `position` counts the global batches that were handed out, the same on every process. It says all that a checkpoint
    has to know of the data, and it holds for any number of processes.
    """

    def __init__(self, start_at: Callable[[int], Iterator[Batch]]):
        """`start_at` makes an iterator that begins with the batch of the given position."""
        self._start_at = start_at
        self._batches: Iterator[Batch] | None = None
        self.position = 0

    def __next__(self) -> Batch:
        if self._batches is None:
            self._batches = self._start_at(self.position)
        batch = next(self._batches)
        self.position += 1
        return batch

    def seek(self, position: int) -> None:
        """The next batch will be that of `position`, counted from 0."""
        self._batches, self.position = None, position


def train_iterator(
    corpus: Corpus, config: DataConfig, seed: int, process_index: int = 0, process_count: int = 1
) -> TrainBatches:
    """Endless `Batch`es of this process's batch_size / process_count rows, the same for the same seed.

    Each epoch of a source has its rows in another order. Several sources are mixed row by row in the proportions of
    `config.weights`, or of their sizes. Global batch b is rows b*B .. (b+1)*B of the mixture whatever the number of
    processes, and process p holds rows p*B/P .. (p+1)*B/P of it. Raises ValueError where the batch does not divide over
    the processes.
    """
    rows_here = _rows_per_process(config.batch_size, process_count)
    begins = np.cumsum([0, *map(len, corpus.train_rows)]).tolist()
    # Grain shuffles and mixes the numbers of rows, which costs it a fraction of what whole rows would.
    sources = [
        grain.MapDataset.range(begin, end).seed((seed + i) % 2**32).shuffle().repeat()
        for i, (begin, end) in enumerate(itertools.pairwise(begins))
    ]
    shares = proportions(list(map(len, corpus.train_rows)), config.weights)
    mixture = grain.MapDataset.mix(sources, shares) if len(sources) > 1 else sources[0]

    def rows(numbers: Sequence[int]) -> Batch:
        where = [(i := bisect.bisect(begins, number) - 1, int(number) - begins[i]) for number in numbers]
        return stack_rows([corpus.train_rows[i][row] for i, row in where])

    # The mixture is batched before it is sliced, so that a process has neighbouring rows and not every P-th one. An
    # endless mixture has no remainder, but if Grain is told to keep one it rounds the length up and overflows.
    batches = mixture.batch(rows_here, drop_remainder=True, batch_fn=rows)[process_index::process_count]
    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=PREFETCH)
    return TrainBatches(lambda position: iter(batches[position:].to_iter_dataset(options)))


def heldout_batches(
    corpus: Corpus, batch_size: int, batches: int = 0, process_index: int = 0, process_count: int = 1
) -> Iterator[Batch]:
    """The first `batches` batches (0: all) of the held-out rows, in an order that never changes and mixes the domains.

    Every row comes once. The last batch is filled up with rows of padding, whose documents are 0. Each process gets its
    part of each batch, as in `train_iterator`, and the same ValueError where the batch does not divide.
    """
    rows_here = _rows_per_process(batch_size, process_count)
    begins = np.cumsum([0, *map(len, corpus.heldout_rows)])  # of each domain, the first of all rows
    # RandomState, not Generator: NumPy promises that its stream never changes.
    order = np.random.RandomState(0).permutation(begins[-1])
    total = -(-int(begins[-1]) // batch_size)
    for batch in range(min(batches, total) if batches else total):
        start = batch * batch_size + process_index * rows_here
        chosen = order[start : start + rows_here]
        domains = np.searchsorted(begins, chosen, side="right") - 1
        within = chosen - begins[domains]
        rows = [corpus.heldout_rows[d][i] for d, i in zip(domains.tolist(), within.tolist(), strict=True)]
        yield stack_rows(rows + [_padding(corpus)] * (rows_here - len(rows)))


def stack_rows(rows: Sequence[Row]) -> Batch:
    """Stacks B rows into one batch."""
    ids, targets, documents, scored, domain = zip(*rows, strict=True)
    ids, targets, documents, scored = map(np.stack, (ids, targets, documents, scored))
    return Batch(ids, targets, documents, scored, np.array(domain, np.int32))


def _padding(corpus: Corpus) -> Row:
    ids = np.full(corpus.train_rows[0].sequence_length, corpus.tokenizer.end_of_document, np.int32)
    return Row(ids, ids, np.zeros_like(ids), np.zeros(len(ids), bool), 0)


def _rows_per_process(batch_size: int, process_count: int) -> int:
    if batch_size % process_count:
        raise ValueError(
            f"data.batch_size={batch_size} does not divide over {process_count} processes: use a multiple of it"
        )
    return batch_size // process_count
