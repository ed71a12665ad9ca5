"""How well the held-out text is predicted without a network, in bits per byte of that text."""

import numpy as np

from moe_jax.data.corpus import Corpus


def unigram_bits_per_byte(corpus: Corpus, domain: str | None = None) -> float:
    """Cross entropy of the held-out bytes under the frequencies of bytes in all training text, each count plus one.

    `domain` restricts the held-out text to one domain. Raises ValueError for an unknown domain, and if no text is
    held out.
    """
    counts = corpus.byte_counts.train + 1
    bits = -np.log2(counts / counts.sum())
    heldout = corpus.byte_counts.heldout[_select(corpus, domain)].sum(axis=0)
    return float(heldout @ bits / heldout.sum())


def gzip_bits_per_byte(corpus: Corpus, domain: str | None = None) -> float:
    """Size of the concatenated held-out text after gzip -9, per byte of it.

    `domain` restricts the text to one domain. Raises ValueError for an unknown domain, and if no text is held out.
    """
    heldout = corpus.byte_counts.heldout[_select(corpus, domain)].sum()
    if domain is None:
        return float(8 * corpus.byte_counts.heldout_gzip_all / heldout)
    return float(8 * corpus.byte_counts.heldout_gzip[corpus.domains.index(domain)] / heldout)


def _select(corpus: Corpus, domain: str | None) -> slice:
    """The domain's row of the held-out counts, or all rows."""
    if domain is not None and domain not in corpus.domains:
        raise ValueError(f"domain {domain!r} is not in the corpus: use one of {', '.join(corpus.domains)}")
    index = None if domain is None else corpus.domains.index(domain)
    rows = slice(None) if index is None else slice(index, index + 1)
    if not corpus.byte_counts.heldout[rows].any():
        raise ValueError("no text is held out: set data.holdout_fraction > 0, or add documents to the domain")
    return rows
