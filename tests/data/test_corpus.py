import dataclasses

import numpy as np
import pytest

from moe_jax.data.corpus import load_corpus
from moe_jax.data.sources.text import TextFiles


def texts(corpus, rows):
    """The documents that rows without a dropped end spell, as a sorted list."""
    targets = np.concatenate([row.targets[row.documents > 0] for row in rows])
    ends = np.flatnonzero(targets == corpus.tokenizer.end_of_document)
    return sorted(corpus.tokenizer.decode(part) for part in np.split(targets, ends + 1) if len(part))


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_every_document_once_in_one_split(letters, make_config, tokenizer):
    config = make_config(f"text:{letters}", tokenizer=tokenizer, holdout_fraction=0.2, sequence_length=10_000)
    corpus = load_corpus(config, 300, seed=0)
    train = texts(corpus, corpus.train_rows[0])
    heldout = [texts(corpus, rows) for rows in corpus.heldout_rows]
    assert corpus.domains == ("high", "low")
    assert [len(documents) for documents in heldout] == [4, 4]
    assert all(text[-1].isupper() for text in heldout[0]) and all(text[-1].islower() for text in heldout[1])
    assert sorted(train + heldout[0] + heldout[1]) == sorted(p.read_text() for p in letters.rglob("*.txt"))
    assert corpus.counts.documents == 40
    assert sum(corpus.counts.train_bytes.values()) == sum(map(len, train))
    assert corpus.counts.heldout_bytes == {"high": sum(map(len, heldout[0])), "low": sum(map(len, heldout[1]))}


def test_a_heldout_row_has_one_domain(letters, make_config):
    corpus = load_corpus(make_config(f"text:{letters}", holdout_fraction=0.3), 257, seed=0)
    for domain, rows in enumerate(corpus.heldout_rows):
        assert len(rows) > 3
        assert {row.domain for row in rows} == {domain}


def test_duplicates_and_binaries_are_counted(write, make_config):
    root = write({"a": "one", "b": "two", "c": "one", "d": b"\0", "e": "three"})
    counts = load_corpus(make_config(f"text:{root}"), 257, seed=0).counts
    assert (counts.documents, counts.duplicates, counts.skipped) == (3, 1, 1)


def test_equal_documents_of_two_sources_stay_on_one_side(write, make_config):
    first = write({str(i): f"text {i}" for i in range(9)})
    second = write({"x": "text 3", "y": "new", "z": "also"}, "two")
    corpus = load_corpus(make_config(f"text:{first},text:{second}"), 257, seed=0)
    assert corpus.counts.duplicates == 1
    assert corpus.domains == ("text", "two")
    assert len(corpus.train_rows) == len(corpus.heldout_rows) == 2


def test_a_warm_start_reads_no_document_and_has_the_same_hash(letters, make_config, monkeypatch, tmp_path):
    config = make_config(f"text:{letters}")
    cold = load_corpus(config, 257, seed=0)
    elsewhere = load_corpus(dataclasses.replace(config, cache_dir=str(tmp_path / "other")), 257, seed=0)
    monkeypatch.setattr(TextFiles, "read", lambda source: pytest.fail("read again"))
    warm = load_corpus(config, 257, seed=0)
    assert warm.sha256 == cold.sha256 == elsewhere.sha256
    assert warm.counts == cold.counts
    np.testing.assert_array_equal(warm.byte_counts.heldout, cold.byte_counts.heldout)
    assert texts(warm, warm.train_rows[0]) == texts(cold, cold.train_rows[0])


def test_seed_and_sequence_length_need_no_new_cache(letters, make_config, monkeypatch):
    config = make_config(f"text:{letters}")
    first = load_corpus(config, 257, seed=0)
    monkeypatch.setattr(TextFiles, "read", lambda source: pytest.fail("read again"))
    reordered = load_corpus(config, 257, seed=1)
    longer = load_corpus(dataclasses.replace(config, sequence_length=16), 257, seed=0)
    assert list(reordered.train_rows[0][0].ids) != list(first.train_rows[0][0].ids)
    assert reordered.sha256 == first.sha256, "the seed orders the data; it is the same data"
    assert longer.sha256 != first.sha256
    assert longer.train_rows[0][0].ids.shape == (16,)


@pytest.mark.parametrize(
    "change", [{"holdout_fraction": 0.5}, {"max_bytes": 100}, {"tokenizer": "bpe"}, {"weights": (2.0,)}]
)
def test_what_changes_the_data_changes_the_hash(letters, make_config, change):
    config = make_config(f"text:{letters}")
    changed = load_corpus(dataclasses.replace(config, **change), 300, seed=0)
    assert changed.sha256 != load_corpus(config, 300, seed=0).sha256


def test_an_edited_file_is_read_again(letters, make_config):
    config = make_config(f"text:{letters}")
    before = load_corpus(config, 257, seed=0).sha256
    path = letters / "low" / "00.txt"
    path.write_text(path.read_text().upper())
    assert load_corpus(config, 257, seed=0).sha256 != before


def test_another_text_field_is_read_again(write, make_config):
    root = write({"a.jsonl": '{"text": "x", "title": "t"}\n{"text": "y", "title": "u"}'})
    fields = ("text", "title", "text")
    first, other, again = (
        load_corpus(make_config(f"jsonl:{root}/a.jsonl", text_field=field), 257, seed=0).sha256 for field in fields
    )
    assert first == again != other


def test_max_bytes_samples_the_training_text_alone(letters, make_config):
    everything = load_corpus(make_config(f"text:{letters}"), 257, seed=0)
    part = load_corpus(make_config(f"text:{letters}", max_bytes=100), 257, seed=0)
    assert 100 <= sum(part.counts.train_bytes.values()) < 100 + 22
    assert part.counts.heldout_bytes == everything.counts.heldout_bytes


def test_max_bytes_is_shared_out_by_size_and_leaves_something_of_each_source(write, make_config):
    first = write({str(i): f"{i}" * 100 for i in range(9)})
    second = write({str(i): f"{i}two" for i in range(9)}, "two")
    corpus = load_corpus(make_config(f"text:{first},text:{second}", max_bytes=250), 257, seed=0)
    # 250 bytes of 8 * 100 + 8 * 4 are 240.4 of the first source and 9.6 of the second, in whole documents.
    assert corpus.counts.train_bytes == {"text": 300, "two": 12}
    corpus = load_corpus(make_config(f"text:{first},text:{second}", max_bytes=1), 257, seed=0)
    assert corpus.counts.train_bytes == {"text": 100, "two": 4}


def test_bpe_is_compact_and_fits_the_model(letters, make_config):
    corpus = load_corpus(make_config(f"text:{letters}", tokenizer="bpe"), 300, seed=0)
    assert 257 < corpus.tokenizer.vocab_size <= 300
    assert max(row.targets.max() for row in corpus.train_rows[0]) < corpus.tokenizer.vocab_size


def test_documents_shorter_than_a_sequence(write, make_config):
    root = write({"a": "x", "b": "y", "c": "z"})
    corpus = load_corpus(make_config(f"text:{root}", sequence_length=32), 257, seed=0)
    (row,) = corpus.train_rows[0]
    assert list(row.documents[:5]) == [1, 1, 2, 2, 0]
    assert row.documents.sum() == 6


@pytest.mark.parametrize(
    ("files", "fields", "message"),
    [
        ({"a": "one"}, {}, r"data\.source='text:.*' has one document a domain, so none can be held out"),
        ({"a": b"\0"}, {}, r"data\.source='text:.*' holds no text"),
        (
            {"a": "1", "b": "2"},
            {"weights": (1.0, 2.0)},
            r"data\.weights=\(1\.0, 2\.0\) has 2 entries for 1 sources: give one each, or \(\)",
        ),
        (
            {"a": "1", "b": "2"},
            {"weights": (0.0,)},
            r"data\.weights=\(0\.0,\) has an entry that is not positive: leave that source out",
        ),
        ({"a": "1", "b": "2"}, {"tokenizer": "words"}, r"data\.tokenizer='words' is unknown: choose one of bytes, bpe"),
        (
            {"a": "1", "b": "2"},
            {"holdout_fraction": 1.0},
            r"data\.holdout_fraction=1\.0 is outside \(0, 1\): 0\.05 holds out one file in 20",
        ),
    ],
)
def test_bad_input_is_one_clear_line(write, make_config, files, fields, message):
    config = make_config(f"text:{write(files)}", **fields)
    with pytest.raises(ValueError, match=message) as error:
        load_corpus(config, 257, seed=0)
    assert "\n" not in str(error.value)


def test_a_source_that_only_repeats_another(letters, make_config):
    with pytest.raises(ValueError, match=r"data\.source='text:.*' only repeats the sources before it"):
        load_corpus(make_config(f"text:{letters},text:{letters}"), 257, seed=0)


def test_a_model_vocabulary_that_is_too_small(letters, make_config):
    with pytest.raises(ValueError, match=r"model\.vocab_size=100 is smaller"):
        load_corpus(make_config(f"text:{letters}"), 100, seed=0)


def test_without_held_out_text(write, make_config):
    corpus = load_corpus(make_config(f"text:{write({'a': 'one'})}", holdout_fraction=0.0), 257, seed=0)
    assert [len(rows) for rows in corpus.heldout_rows] == [0]
