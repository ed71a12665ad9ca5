import dataclasses

import numpy as np
import pytest

from moe_jax.data.packing import Rows, TokenizedDocuments, heldout_rows, training_rows

E = 9  # end of document


def join(encoded, domains, end):
    """The documents of lists of ids."""
    lengths = [len(ids) + 1 for ids in encoded]
    tokens = np.concatenate([np.empty(0, np.uint16), *(part for ids in encoded for part in (ids, [end]))])
    starts = np.cumsum([0, *lengths], dtype=np.int64)
    return TokenizedDocuments(np.array(domains, np.int32), starts, tokens.astype(np.uint16), end)


@pytest.fixture
def documents():
    """Three documents, of domains 0, 1 and 0, as byte ids."""
    encoded = [np.array(ids, np.uint8) for ids in ([1, 1, 1], [2], [3, 3, 3, 3])]
    return join(encoded, [0, 1, 0], E)


def rows_of(rows):
    return [(list(row.ids), list(row.targets), list(row.documents), row.domain) for row in rows]


def test_rows_by_hand(documents):
    # The stream is   E 1 1 1 E 2 E 3 3 3 3 E   and each row shares one token with the next.
    assert rows_of(heldout_rows(documents, 4)) == [
        ([E, 1, 1, 1], [1, 1, 1, E], [1, 1, 1, 1], 0),
        ([E, 2, E, 3], [2, E, 3, 3], [1, 1, 2, 2], 1),
        ([3, 3, 3, E], [3, 3, E, E], [1, 1, 1, 0], 0),  # the last row is padded
    ]


def test_a_row_that_starts_within_a_document(documents):
    assert rows_of(heldout_rows(documents, 5)) == [
        ([E, 1, 1, 1, E], [1, 1, 1, E, 2], [1, 1, 1, 1, 2], 0),
        ([2, E, 3, 3, 3], [E, 3, 3, 3, 3], [1, 2, 2, 2, 2], 1),
        ([3, E, E, E, E], [E, E, E, E, E], [1, 0, 0, 0, 0], 0),
    ]


def test_rows_in_another_order(documents):
    # E 3 3 3 3 E 1 1 1 E 2 E; without the last, partial row.
    rows = Rows(documents, np.array([2, 0, 1]), 4, keep_last=False)
    assert rows_of(rows) == [
        ([E, 3, 3, 3], [3, 3, 3, 3], [1, 1, 1, 1], 0),
        ([3, E, 1, 1], [E, 1, 1, 1], [1, 2, 2, 2], 0),
    ]


def test_empty_documents_still_count():
    documents = join([np.empty(0, np.uint8), np.array([1], np.uint8)], [0, 1], E)
    assert rows_of(heldout_rows(documents, 3)) == [([E, E, 1], [E, 1, E], [1, 2, 2], 0)]


def test_less_than_one_sequence_is_padded_into_one(documents):
    ids = [E, 1, 1, 1, E, 2, E, 3, 3, 3, 3, E, E]
    targets = [1, 1, 1, E, 2, E, 3, 3, 3, 3, E, E, E]
    expected = [(ids, targets, [1, 1, 1, 1, 2, 2, 3, 3, 3, 3, 3, 0, 0], 0)]
    assert rows_of(heldout_rows(documents, 13)) == expected
    assert rows_of(Rows(documents, np.arange(3), 13, keep_last=False)) == expected


def test_no_row_is_padded_where_the_stream_divides(documents):
    assert rows_of(heldout_rows(documents, 11))[0][2] == [1] * 4 + [2] * 2 + [3] * 5
    assert len(heldout_rows(documents, 11)) == len(Rows(documents, np.arange(3), 11, keep_last=False)) == 1


def test_nothing_held_out_is_no_row():
    assert rows_of(heldout_rows(join([], [], E), 4)) == []


def test_index_out_of_range(documents):
    with pytest.raises(IndexError, match="row 3 of 3"):
        heldout_rows(documents, 4)[3]
    with pytest.raises(IndexError):
        heldout_rows(documents, 4)[-1]


def test_training_order_is_seeded():
    documents = join([np.array([i], np.uint8) for i in range(8)], [0] * 8, E)
    order = [rows_of(training_rows(documents, 16, (seed, 0)))[0][1][::2] for seed in (0, 1, 0)]
    assert order[0] == order[2] != order[1]
    assert sorted(order[0]) == sorted(order[1]) == list(range(8))
    assert order[0] == [3, 7, 4, 0, 2, 6, 5, 1], "NumPy's RandomState never changes; nor may this"


@pytest.mark.parametrize("length", [1, 2, 3, 7, 50])
def test_random_streams_equal_a_plain_loop(length):
    generator = np.random.RandomState(length)
    encoded = [generator.randint(0, E, size).astype(np.uint8) for size in generator.randint(0, 12, 30)]
    order = generator.permutation(30)
    rows = Rows(join(encoded, [0] * 30, E), order, length, keep_last=True)

    stream, number = [E], [0]
    for count, d in enumerate(order, start=1):
        stream += [*encoded[d], E]
        number += [count] * (len(encoded[d]) + 1)
    assert len(rows) == -(-(len(stream) - 1) // length)
    for i, row in enumerate(rows):
        ids, targets = stream[i * length :][:length], stream[i * length + 1 :][:length]
        documents = number[i * length + 1 :][:length]
        valid = row.documents > 0
        assert list(row.targets[valid]) == targets
        assert list(row.ids[valid]) == ids[: len(targets)]
        assert list(row.documents[valid]) == [d - documents[0] + 1 for d in documents]


def test_prompts_are_read_and_not_scored(documents):
    """Of the stream E 1 1 1 E 2 E 3 3 3 3 E prompts are two 1s, no 2 and three 3s; ends of documents are scored."""
    with_prompts = dataclasses.replace(documents, prompts=np.array([2, 0, 3]))
    rows = heldout_rows(with_prompts, 4)
    assert rows_of(rows) == rows_of(heldout_rows(documents, 4))
    assert [row.scored.astype(int).tolist() for row in rows] == [[0, 0, 1, 1], [1, 1, 0, 0], [0, 1, 1, 0]]
    reordered = Rows(with_prompts, np.array([2, 0, 1]), 11, keep_last=True)
    assert [row.scored.astype(int).tolist() for row in reordered] == [[0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 1]]
    assert all((row.scored == (row.documents > 0)).all() for row in heldout_rows(documents, 5))
