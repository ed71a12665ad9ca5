import gzip
import math

import pytest

from moe_jax.data.baselines import gzip_bits_per_byte, unigram_bits_per_byte
from moe_jax.data.corpus import load_corpus


@pytest.fixture
def files():
    return {"x/1": "aab", "x/2": "ab" * 30, "y/1": "bbbb", "y/2": "c" * 50 + "b", "z/only": "aaaa"}


@pytest.fixture
def corpus(files, write, make_config):
    return load_corpus(make_config(f"text:{write(files)}", holdout_fraction=0.5), 257, seed=0)


@pytest.fixture
def heldout(files, corpus):
    """Held-out text by domain, found again by its size; one of the two documents of x and of y."""
    texts = {"x": ["aab", "ab" * 30], "y": ["bbbb", "c" * 50 + "b"]}
    return {d: next(t for t in pair if len(t) == corpus.counts.heldout_bytes[d]) for d, pair in texts.items()}


def by_hand(files, heldout, text):
    train = "".join(t for t in files.values() if t not in heldout.values())
    bits = [-math.log2((train.count(c) + 1) / (len(train) + 256)) for c in text]
    return sum(bits) / len(bits)


def test_unigram_by_hand(files, corpus, heldout):
    assert unigram_bits_per_byte(corpus) == pytest.approx(by_hand(files, heldout, heldout["x"] + heldout["y"]))
    assert unigram_bits_per_byte(corpus, "x") == pytest.approx(by_hand(files, heldout, heldout["x"]))


def test_gzip_equals_the_standard_library(corpus, heldout):
    def bits(text):
        return 8 * len(gzip.compress(text.encode(), 9)) / len(text)

    assert gzip_bits_per_byte(corpus) == pytest.approx(bits(heldout["x"] + heldout["y"]))
    assert gzip_bits_per_byte(corpus, "y") == pytest.approx(bits(heldout["y"]))


@pytest.mark.parametrize("baseline", [unigram_bits_per_byte, gzip_bits_per_byte])
def test_domains_without_a_number(corpus, baseline):
    with pytest.raises(ValueError, match="domain 'w' is not in the corpus: use one of x, y, z"):
        baseline(corpus, "w")
    with pytest.raises(ValueError, match=r"no text is held out: set data\.holdout_fraction > 0"):
        baseline(corpus, "z")
