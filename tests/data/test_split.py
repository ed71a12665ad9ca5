import pytest

from moe_jax.data.documents import Document
from moe_jax.data.split import holdout_split, sample

# Of d/0 .. d/39. Another set here means that every published held-out loss was measured on other text.
HELDOUT = ["d/21", "d/35", "d/4", "d/8"]


def documents(count, domain="d", size=1):
    return [Document(b"x" * size, domain, f"{domain}/{i}") for i in range(count)]


def names(documents):
    return {document.name for document in documents}


@pytest.mark.parametrize(("count", "heldout"), [(1, 0), (2, 1), (10, 1), (39, 2), (200, 10)])
def test_share_of_a_domain(count, heldout):
    split = holdout_split(documents(count), 0.05)
    assert (len(split.train), len(split.heldout)) == (count - heldout, heldout)


def test_each_domain_apart_and_no_document_twice():
    both = documents(20, "a") + documents(60, "b")
    split = holdout_split(both, 0.1)
    assert not names(split.train) & names(split.heldout)
    assert names(split.train) | names(split.heldout) == names(both)
    assert [d.domain for d in split.heldout] == 2 * ["a"] + 6 * ["b"]
    assert split.train == [d for d in both if d in split.train], "the order of the source stays"


def test_never_all_of_a_domain_and_none_on_request():
    assert len(holdout_split(documents(3), 0.99).train) == 1
    assert holdout_split(documents(3), 0.0).heldout == []


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 5])
def test_not_a_fraction(fraction):
    with pytest.raises(
        ValueError, match=r"data\.holdout_fraction=.* is outside \(0, 1\): 0\.05 holds out one file in 20"
    ):
        holdout_split(documents(3), fraction)


def test_depends_on_names_alone():
    assert sorted(names(holdout_split(documents(40), 0.1).heldout)) == HELDOUT
    assert sorted(names(holdout_split(documents(40, size=9)[::-1], 0.1).heldout)) == HELDOUT


def test_a_new_document_moves_at_most_one():
    before = names(holdout_split(documents(40), 0.1).heldout)
    after = names(holdout_split(documents(41), 0.1).heldout)
    assert len(before - after) <= 1


def test_sample_is_nested_and_of_about_the_size():
    everything = documents(30, size=10)
    small, large = sample(everything, 45), sample(everything, 120)
    assert (len(small), len(large)) == (5, 12)
    assert names(small) < names(large)
    assert sample(everything, 0) == sample(everything, 10**6) == everything
    assert len(sample(everything, 0.5)) == 1
