import dataclasses
import itertools

import numpy as np
import pytest

from moe_jax.data.corpus import load_corpus
from moe_jax.data.pipeline import heldout_batches, train_iterator


@pytest.fixture
def config(letters, make_config):
    return make_config(f"text:{letters}", holdout_fraction=0.25)


@pytest.fixture
def corpus(config):
    return load_corpus(config, 257, seed=0)


@pytest.fixture
def two_sources(write, make_config):
    """Two sources of one domain each; the rows of the first, longer one hold digits, of the second one letters."""
    write({f"{i}": f"{i:03}" * 20 for i in range(40)}, "digits")
    root = write({f"{i}": "abcdefghijklmnopqrstuvwxyz"[i] * 80 for i in range(10)}, "letters").parent
    return make_config(f"text:{root}/digits,text:{root}/letters")


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def assert_equal(batches, others):
    for batch, other in zip(batches, others, strict=True):
        for field, array, expected in zip(batch._fields, batch, other, strict=True):
            np.testing.assert_array_equal(array, expected, err_msg=field)


def concatenate(batches):
    return type(batches[0])(*map(np.concatenate, zip(*batches, strict=True)))


def targets(batches):
    return [tuple(row) for batch in batches for row in batch.targets]


def test_a_batch_holds_rows_of_the_corpus(corpus, config):
    batch = next(train_iterator(corpus, config, seed=0))
    assert [array.dtype for array in batch] == [np.int32] * 3 + [np.bool_, np.int32]
    assert [array.shape for array in batch] == [(4, 8)] * 4 + [(4,)]
    rows = {tuple(row.targets): row for row in corpus.train_rows[0]}
    for i in range(4):
        row = rows[tuple(batch.targets[i])]
        np.testing.assert_array_equal(batch.ids[i], row.ids)
        np.testing.assert_array_equal(batch.documents[i], row.documents)
        assert batch.domain[i] == row.domain


def test_the_seed_decides(corpus, config):
    first, again, other = (take(train_iterator(corpus, config, seed), 5) for seed in (3, 3, 4))
    assert_equal(first, again)
    assert targets(first) != targets(other)


def test_each_epoch_has_every_row_in_another_order(corpus, config):
    config = dataclasses.replace(config, batch_size=1)
    size = len(corpus.train_rows[0])
    seen = targets(take(train_iterator(corpus, config, seed=0), 3 * size))
    epochs = [seen[i * size : (i + 1) * size] for i in range(3)]
    expected = sorted(tuple(row.targets) for row in corpus.train_rows[0])
    assert [sorted(epoch) for epoch in epochs] == [expected] * 3
    assert len(set(map(tuple, epochs))) == 3
    assert expected not in epochs


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("sources", [1, 2])
def test_processes_hold_contiguous_parts_of_the_same_batch(config, two_sources, processes, sources):
    config = config if sources == 1 else two_sources
    corpus = load_corpus(config, 257, seed=0)
    # Two epochs of the smaller corpus, so that batches span the border between them.
    parts = [take(train_iterator(corpus, config, 0, p, processes), 40) for p in range(processes)]
    assert_equal(map(concatenate, zip(*parts, strict=True)), take(train_iterator(corpus, config, 0), 40))


def test_processes_that_do_not_divide_the_batch(corpus, config):
    with pytest.raises(ValueError, match=r"data\.batch_size=4 does not divide over 3 processes"):
        train_iterator(corpus, config, seed=0, process_count=3)


@pytest.mark.parametrize("steps", [0, 5, 30])
def test_goes_on_exactly_from_a_position_whatever_the_number_of_processes(two_sources, steps):
    corpus = load_corpus(two_sources, 257, seed=0)
    iterator = train_iterator(corpus, two_sources, seed=0)
    take(iterator, steps)
    assert iterator.position == steps
    expected = take(iterator, 20)
    again = load_corpus(two_sources, 257, seed=0)
    for processes in (1, 2, 4):  # another number than before
        parts = [train_iterator(again, two_sources, 0, p, processes) for p in range(processes)]
        for part in parts:
            part.seek(steps)
        batches = [concatenate(batch) for batch in zip(*(take(part, 20) for part in parts), strict=True)]
        assert_equal(batches, expected)
        assert {part.position for part in parts} == {steps + 20}


def count_by_source(corpus, config):
    domain = np.concatenate([batch.domain for batch in take(train_iterator(corpus, config, seed=0), 100)])
    return np.bincount(domain, minlength=2)


@pytest.mark.parametrize("weights", [(3.0, 1.0), (0.1, 0.9)])
def test_sources_are_mixed_by_weight(two_sources, weights):
    config = dataclasses.replace(two_sources, weights=weights)
    counts = count_by_source(load_corpus(config, 257, seed=0), config)
    np.testing.assert_allclose(counts / 400, np.array(weights) / sum(weights), atol=1 / 400)


def test_sources_are_mixed_by_size_by_default(two_sources):
    corpus = load_corpus(two_sources, 257, seed=0)
    sizes = np.array([len(rows) for rows in corpus.train_rows])
    np.testing.assert_allclose(count_by_source(corpus, two_sources) / 400, sizes / sizes.sum(), atol=2 / 400)


def test_every_heldout_token_is_a_target_once(corpus, config, letters):
    batches = list(heldout_batches(corpus, 4))
    valid = np.concatenate([batch.targets[batch.documents > 0] for batch in batches])
    sizes = corpus.counts.heldout_bytes
    documents = (valid == corpus.tokenizer.end_of_document).sum()
    assert documents == 10  # a quarter of 40
    assert len(valid) == sum(sizes.values()) + documents
    assert corpus.tokenizer.bytes_per_token[valid].sum() == sum(sizes.values())
    for index, name in enumerate(corpus.domains):
        of_domain = np.concatenate([b.targets[(b.documents > 0) & (b.domain == index)[:, None]] for b in batches])
        assert corpus.tokenizer.bytes_per_token[of_domain].sum() == sizes[name]


def test_the_last_heldout_batch_is_filled_with_padding(corpus):
    rows = sum(map(len, corpus.heldout_rows))
    batches = list(heldout_batches(corpus, rows - 1))
    assert [batch.ids.shape for batch in batches] == [(rows - 1, 8)] * 2
    assert batches[0].documents.any(axis=1).all()
    np.testing.assert_array_equal(batches[1].documents.any(axis=1), np.arange(rows - 1) == 0)


def test_heldout_order_is_fixed_and_spreads_the_domains(corpus):
    everything = list(heldout_batches(corpus, 4))
    assert_equal(heldout_batches(corpus, 4, batches=2), everything[:2])
    assert_equal(heldout_batches(corpus, 4, batches=1000), everything)
    assert set(np.concatenate([batch.domain for batch in everything[:2]])) == {0, 1}


@pytest.mark.parametrize("batch_size", [4, 6])
def test_processes_hold_parts_of_the_same_heldout_batch(corpus, batch_size):
    parts = [heldout_batches(corpus, batch_size, 0, p, 2) for p in range(2)]
    assert_equal(map(concatenate, zip(*parts, strict=True)), heldout_batches(corpus, batch_size))


def test_no_heldout_text_is_no_batch(letters, make_config):
    corpus = load_corpus(make_config(f"text:{letters}", holdout_fraction=0.0), 257, seed=0)
    assert list(heldout_batches(corpus, 4)) == []
