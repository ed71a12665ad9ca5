"""Which documents are held out and which of the others are trained on, as a hash of their names decides."""

import collections
import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from moe_jax.config.rules import ConfigError
from moe_jax.data.documents import Document


class Split(NamedTuple):
    """Training and held-out documents of one source, each in the order of the source."""

    train: list[Document]
    heldout: list[Document]


def check_holdout_fraction(fraction: float | int) -> None:
    """Raises ConfigError unless 0 < fraction < 1."""
    if not 0 < fraction < 1:
        raise ConfigError(f"data.holdout_fraction={fraction} is outside (0, 1): 0.05 holds out one file in 20")


def holdout_split(documents: Sequence[Document], fraction: float | int) -> Split:
    """Holds out `fraction` of each domain's documents, those whose names hash lowest.

    The number is rounded to whole documents, but a domain with more than one document always has one held out and
    never all. A fraction of 0 holds out nothing. Neither the order of the documents nor their content matters, and a
    document added to a domain moves at most those at the border. Raises ConfigError unless 0 <= fraction < 1.
    """
    if fraction:
        check_holdout_fraction(fraction)
    domains: dict[str, list[str]] = collections.defaultdict(list)
    for document in documents:
        domains[document.domain].append(document.name)
    heldout: set[str] = set()
    for names in domains.values():
        count = min(max(round(fraction * len(names)), 1), len(names) - 1) if fraction else 0
        heldout.update(_ranked(names, "holdout")[:count])
    return Split(
        [document for document in documents if document.name not in heldout],
        [document for document in documents if document.name in heldout],
    )


def sample(documents: Sequence[Document], max_bytes: float | int) -> list[Document]:
    """The documents whose names hash lowest, until they make up `max_bytes`; the last one may exceed it.

    A smaller sample is part of every larger one, and no sample is empty. `max_bytes` 0 takes all documents.
    """
    if not max_bytes:
        return list(documents)
    size = {document.name: len(document.text) for document in documents}
    kept: set[str] = set()
    total = 0
    for name in _ranked(size, "sample"):
        if total >= max_bytes:
            break
        kept.add(name)
        total += size[name]
    return [document for document in documents if document.name in kept]


def _ranked(names: Iterable[str], purpose: str) -> list[str]:
    """The names sorted by a hash; another `purpose` gives an unrelated order."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{purpose}:{name}".encode()).digest())
