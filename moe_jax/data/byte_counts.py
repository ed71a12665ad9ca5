"""What the baselines need to know about the text, counted once when a corpus is built."""

import dataclasses
import zlib
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int64

from moe_jax.data.documents import Document

GZIP_WINDOW = 31  # zlib's code for its largest window with a gzip header


@dataclasses.dataclass(frozen=True, eq=False)
class ByteCounts:
    """How often each byte occurs, and how small the held-out text gets."""

    train: Int64[np.ndarray, "256"]
    heldout: Int64[np.ndarray, "domains 256"]
    heldout_gzip: Int64[np.ndarray, " domains"]  # bytes of each domain's held-out text after gzip -9
    heldout_gzip_all: int  # bytes of all held-out text after gzip -9, the domains one after another


def count_bytes(train: Iterable[Document], heldout: Sequence[Sequence[Document]]) -> ByteCounts:
    """Counts the training documents and each domain's held-out documents."""
    return ByteCounts(
        _histogram(train),
        np.array([_histogram(documents) for documents in heldout], np.int64).reshape(-1, 256),
        np.array([_gzip_size(documents) for documents in heldout], np.int64),
        _gzip_size([document for documents in heldout for document in documents]),
    )


def _histogram(documents: Iterable[Document]) -> Int64[np.ndarray, "256"]:
    counts = np.zeros(256, np.int64)
    for document in documents:
        counts += np.bincount(np.frombuffer(document.text, np.uint8), minlength=256)
    return counts


def _gzip_size(documents: Iterable[Document]) -> int:
    """Bytes of the texts after gzip -9, concatenated with nothing in between."""
    compressor = zlib.compressobj(level=9, wbits=GZIP_WINDOW)
    return sum(len(compressor.compress(document.text)) for document in documents) + len(compressor.flush())
