import re

import numpy as np
import pytest

from moe_jax.config.rules import MachineError
from moe_jax.data import split
from moe_jax.data.build import _reread
from moe_jax.data.documents import Document
from moe_jax.data.index import HELDOUT, KEPT, TRAIN, Index
from moe_jax.data.split import deduplicate, hold_out, sample_training

# Of d/0 .. d/39. Another set here means that every published held-out loss was measured on other text.
HELDOUT_NAMES = ["d/21", "d/35", "d/4", "d/8"]


def documents(count, domain="d", size=1):
    return [Document(f"{domain}{i}".encode().ljust(size, b"x")[-size:], domain, f"{domain}/{i}") for i in range(count)]


@pytest.fixture
def index_of(tmp_path):
    """index_of(documents, documents, ...) is the index of so many sources, all documents kept."""
    made = []

    def make(*sources, keep=True):
        directory = tmp_path / str(len(made))
        directory.mkdir()
        index = Index(directory)
        made.append(index)
        for number, source in enumerate(sources):
            index.add_source(f"text:{number}", iter(source))
        index.complete()
        index.flags[:] = KEPT if keep else 0
        return index

    yield make
    for index in made:
        index.close()


@pytest.fixture
def halves(index_of):
    """halves(documents, fraction): the names that are trained on, and those that are held out."""

    def split_names(given, fraction):
        index = index_of(given)
        hold_out(index, fraction)
        return tuple({given[i].name for i in np.flatnonzero(index.flags & flag)} for flag in (TRAIN, HELDOUT))

    return split_names


@pytest.mark.parametrize(("count", "heldout"), [(1, 0), (2, 1), (10, 1), (39, 2), (200, 10)])
def test_share_of_a_domain(halves, count, heldout):
    assert tuple(map(len, halves(documents(count), 0.05))) == (count - heldout, heldout)


def test_each_domain_apart_and_no_document_twice(halves):
    both = documents(20, "a") + documents(60, "b")
    train, heldout = halves(both, 0.1)
    assert not train & heldout
    assert train | heldout == {document.name for document in both}
    assert sorted(name[0] for name in heldout) == 2 * ["a"] + 6 * ["b"]


def test_each_source_apart(index_of):
    index = index_of(documents(20), documents(20))
    hold_out(index, 0.1)
    first, second = (np.flatnonzero(index.flags[span.start : span.stop] & HELDOUT) for span in index.spans)
    assert list(first) == list(second) and len(first) == 2, "the same names"


def test_never_all_of_a_domain_and_none_on_request(halves):
    assert len(halves(documents(3), 0.99)[0]) == 1
    assert halves(documents(3), 0.0)[1] == set()


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 5])
def test_not_a_fraction(halves, fraction):
    with pytest.raises(
        ValueError, match=r"data\.holdout_fraction=.* is outside \(0, 1\): 0\.05 holds out one file in 20"
    ):
        halves(documents(3), fraction)


def test_depends_on_names_alone(halves):
    assert sorted(halves(documents(40), 0.1)[1]) == HELDOUT_NAMES
    assert sorted(halves(documents(40, size=9)[::-1], 0.1)[1]) == HELDOUT_NAMES


def test_a_new_document_moves_at_most_one(halves):
    assert len(halves(documents(40), 0.1)[1] - halves(documents(41), 0.1)[1]) <= 1


def test_a_document_that_is_not_kept_is_nowhere(index_of):
    index = index_of(documents(10))
    index.flags[3:] = 0
    hold_out(index, 0.5)
    assert not index.flags[3:].any() and index.flags[:3].all()


@pytest.mark.parametrize("bins", [2, 16])
def test_the_border_does_not_depend_on_the_bins(monkeypatch, halves, bins):
    expected = halves(documents(300), 0.21)
    monkeypatch.setattr(split, "BINS", bins)
    assert halves(documents(300), 0.21) == expected


def sampled(index_of, everything, max_bytes):
    index = index_of(everything)
    hold_out(index, 0.0)
    sample_training(index, max_bytes)
    return {everything[i].name for i in np.flatnonzero(index.flags & TRAIN)}


def test_sample_is_nested_and_of_about_the_size(index_of):
    everything = documents(30, size=10)
    small, large = (sampled(index_of, everything, size) for size in (45, 120))
    assert (len(small), len(large)) == (5, 12)
    assert small < large
    assert sampled(index_of, everything, 0) == sampled(index_of, everything, 10**6) == {d.name for d in everything}
    assert len(sampled(index_of, everything, 0.5)) == 1


def test_each_source_gives_its_share_of_the_sample(index_of):
    index = index_of(documents(30, "a", size=10), documents(10, "b", size=10))
    hold_out(index, 0)
    sample_training(index, 200)
    assert [int((index.flags[span.start : span.stop] & TRAIN > 0).sum()) for span in index.spans] == [15, 5]


@pytest.mark.parametrize("partition", [1, 7, 1 << 20])
def test_the_first_of_the_same_texts_is_kept(monkeypatch, tmp_path, index_of, partition):
    monkeypatch.setattr(split, "PARTITION", partition)
    monkeypatch.setattr("moe_jax.data.index.CHUNK", 4)
    texts = [bytes([65 + i % 7]) for i in range(20)]
    index = index_of(
        *([Document(text, "d", f"{i}") for i, text in enumerate(part)] for part in (texts, texts[::-1])), keep=False
    )
    assert deduplicate(index, tmp_path) == 33
    assert list(np.flatnonzero(index.flags & KEPT)) == list(range(7))
    assert not [path for path in tmp_path.iterdir() if re.match("hashes", path.name)]


def test_the_index_in_several_chunks(monkeypatch, index_of):
    monkeypatch.setattr("moe_jax.data.index.CHUNK", 4)
    everything = documents(11, size=3) + documents(2, "other", size=5)
    index = index_of(everything, documents(3))
    assert [len(records) for _, records in index.chunks()] == [4, 4, 4, 4]
    assert [entry.domain for entry in index.entries(index.spans[0])] == 11 * [0] + 2 * [1]
    assert sum(int(records["length"].sum()) for _, records in index.chunks(range(10, 13))) == 3 + 5 + 5


def test_more_domains_than_can_be_evaluated(monkeypatch, index_of):
    monkeypatch.setattr("moe_jax.data.index.MAX_DOMAINS", 3)
    with pytest.raises(ValueError, match=r"data\.source='text:0' has more than 3 domains"):
        index_of([Document(b"x", str(i), str(i)) for i in range(4)])


class Source:
    """Documents from a list, and two files between them that hold no text."""

    spec = "text:x"

    def __init__(self, documents):
        self.documents = documents

    def read(self):
        return iter([None, *self.documents, None])

    def fingerprint(self):
        return ""

    def sha256(self):
        return ""


DOCUMENTS = [Document(text, "d", name) for text, name in ((b"one", "a"), (b"two", "b"), (b"three", "c"))]


@pytest.mark.parametrize(
    "again",
    [
        DOCUMENTS[:2],
        [*DOCUMENTS, Document(b"four", "d", "d")],
        [DOCUMENTS[0], Document(b"other", "d", "b"), DOCUMENTS[2]],
        [DOCUMENTS[1], DOCUMENTS[0], DOCUMENTS[2]],
    ],
    ids=["one less", "one more", "another text", "another order"],
)
def test_the_second_pass_finds_what_the_first_has_found(tmp_path, again):
    index = Index(tmp_path)
    index.add_source("text:x", Source(DOCUMENTS).read())
    index.complete()
    deduplicate(index, tmp_path)
    found = [document for document, flags in _reread(Source(DOCUMENTS), index, index.spans[0]) if flags & KEPT]
    assert found == DOCUMENTS
    with pytest.raises(MachineError, match=r"data\.source='text:x' has changed while it was read"):
        list(_reread(Source(again), index, index.spans[0]))
