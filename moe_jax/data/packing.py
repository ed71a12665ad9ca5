"""Documents become one stream of tokens, which is cut into rows of `sequence_length` ids and targets.

A stream is an end-of-document token, then each document followed by one:

    e a a a e b b e ...          row i covers stream[i*L : i*L + L + 1]

so that every token of every document is a target exactly once, and the first one is too. The stream is never built:
the cache holds the documents' tokens in a fixed order (`shards.py`), and a row gathers the few pieces that it covers.
A new seed or a new sequence length therefore tokenizes nothing again.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64, Integer

from moe_jax.data.shards import Tokens


class Row(NamedTuple):
    """One sequence. Position j holds the vocabulary index ids[j] and has to predict targets[j]."""

    ids: Int32[np.ndarray, " L"]
    targets: Int32[np.ndarray, " L"]
    documents: Int32[np.ndarray, " L"]  # which of the row's documents the target belongs to, from 1; 0: padding
    scored: Bool[np.ndarray, " L"]  # whether the target counts: it is no padding, and no token of a prompt
    domain: int  # index of the domain of the document that the first target belongs to


@dataclasses.dataclass(frozen=True, eq=False)
class TokenizedDocuments:
    """Documents one after another, each followed by an end-of-document token; document d is starts[d] : starts[d+1]."""

    domains: Int32[np.ndarray, " documents"]
    starts: Int64[np.ndarray, " documents+1"]
    tokens: Tokens
    end_of_document: int
    prompts: Int64[np.ndarray, " documents"] | None = None  # leading tokens that are no targets; None: nowhere any


class Rows:
    """The rows of a stream of documents in a given order, by index."""

    def __init__(
        self,
        documents: TokenizedDocuments,
        order: Integer[np.ndarray, " documents"],
        sequence_length: int,
        keep_last: bool,
    ):
        """Takes the documents in `order`.

        A last row that is not full is padded if `keep_last` or if there is no other row, and dropped otherwise.
        """
        self._documents = documents
        self._order = order
        self.sequence_length = sequence_length
        # Where each document starts in the stream. The stream's leading end-of-document token is at 0.
        self._starts = 1 + np.cumsum([0, *np.diff(documents.starts)[order]], dtype=np.int64)
        targets = int(documents.starts[-1])
        whole, rest = divmod(targets, sequence_length)
        self._rows = whole + bool(rest and (keep_last or not whole))
        self.is_padded = self._rows > whole  # whether the last row is not full

    @property
    def num_documents(self) -> int:
        """Documents that the rows are made of."""
        return len(self._order)

    def long_prompts(self) -> int:
        """Documents whose prompt fills a row, so that no row holds all of it and a token of the text."""
        prompts = self._documents.prompts
        return 0 if prompts is None else int(np.sum(np.asarray(prompts) >= self.sequence_length))

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < self._rows:
            raise IndexError(f"row {index} of {self._rows}")
        length, end = self.sequence_length, self._documents.end_of_document
        window = np.full(length + 1, end, np.int32)
        stream = self._read(index * length, index * length + length + 1)
        window[: len(stream)] = stream
        ids, targets = window[:-1], window[1:]
        # An end-of-document id predicts the next document's first token, so it counts as part of that document.
        documents = np.cumsum(ids == end, dtype=np.int32) + np.int32(ids[0] != end)
        documents[len(stream) - 1 :] = 0
        scored = documents > 0
        if self._documents.prompts is not None:
            scored &= self._behind_prompts(index * length + 1)
        first = self._order[self._find(index * length + 1)]
        return Row(ids, targets, documents, scored, int(self._documents.domains[first]))

    def _behind_prompts(self, start: int) -> Bool[np.ndarray, " L"]:
        """Whether each of the row's targets, from a stream position on, lies behind its document's prompt."""
        positions = start + np.arange(self.sequence_length)
        k = np.searchsorted(self._starts, positions, side="right") - 1
        k = np.minimum(k, len(self._order) - 1)  # behind the last document there is padding
        assert self._documents.prompts is not None
        return positions - self._starts[k] >= self._documents.prompts[self._order[k]]

    def _find(self, position: int) -> int:
        """The document, counted in stream order, that the token at a stream position belongs to."""
        return int(np.searchsorted(self._starts, position, side="right")) - 1

    def _read(self, start: int, stop: int) -> Integer[np.ndarray, " tokens"]:
        """stream[start:stop], cut off at the end of the stream."""
        tokens, end = self._documents.tokens, self._documents.end_of_document
        pieces = [np.array([end], tokens.dtype)] if start == 0 else []
        position, stop = max(start, 1), min(stop, int(self._starts[-1]))
        k = self._find(position)
        while position < stop:
            until = min(stop, int(self._starts[k + 1]))
            offset = int(self._documents.starts[self._order[k]] - self._starts[k])
            pieces.append(tokens[offset + position : offset + until])
            position, k = until, k + 1
        return np.concatenate(pieces)


def training_rows(documents: TokenizedDocuments, sequence_length: int, seed: tuple[int, ...]) -> Rows:
    """Rows of the documents in an order drawn from `seed` (non-negative, below 2**32)."""
    # RandomState, not Generator: NumPy promises that its stream never changes.
    order = np.random.RandomState(seed).permutation(len(documents.domains))
    return Rows(documents, order, sequence_length, keep_last=False)


def heldout_rows(documents: TokenizedDocuments, sequence_length: int) -> Rows:
    """Rows of the documents in their stored order; every token is a target once, since the last row is kept."""
    return Rows(documents, np.arange(len(documents.domains)), sequence_length, keep_last=True)
