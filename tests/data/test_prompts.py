"""Documents with prompts: what is read and what is learnt, from the file to the loss."""

import json

import jax
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from moe_jax.config.rules import ConfigError
from moe_jax.data import encoding
from moe_jax.data.corpus import load_corpus

PAIRS = [(f"Ask {i}: {'x' * (i % 5)}", f"answer {i} {'y' * (i % 7)}") for i in range(30)] + [("", "no prompt at all")]
FIELDS = {"text_field": "response", "prompt_field": "prompt"}


@pytest.fixture
def lines(write):
    return write({"a.jsonl": "\n".join(json.dumps({"prompt": p, "response": r}) for p, r in PAIRS)}) / "a.jsonl"


def scored_and_read(corpus, rows):
    """[(what is read before, what is scored)] of each document of long rows, decoded."""
    found = []
    for row in rows:
        for document in range(1, row.documents.max() + 1):
            here = row.documents == document
            parts = [row.targets[here & ~row.scored], row.targets[here & row.scored]]
            assert parts[1][-1] == corpus.tokenizer.end_of_document
            assert row.scored[here].tolist() == [False] * len(parts[0]) + [True] * len(parts[1])
            found.append((corpus.tokenizer.decode(parts[0]), corpus.tokenizer.decode(parts[1][:-1])))
    return found


def pairs(corpus):
    return sorted(pair for rows in (*corpus.train_rows, *corpus.heldout_rows) for pair in scored_and_read(corpus, rows))


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_responses_are_scored_and_prompts_are_read(lines, make_config, tokenizer, monkeypatch):
    config = make_config(f"jsonl:{lines}", tokenizer=tokenizer, sequence_length=4000, holdout_fraction=0.2, **FIELDS)
    corpus = load_corpus(config, 300, seed=0)
    assert pairs(corpus) == sorted(PAIRS)
    again = load_corpus(config, 300, seed=0)  # from the cache
    assert scored_and_read(again, again.train_rows[0]) == scored_and_read(corpus, corpus.train_rows[0])


def test_the_same_from_parquet_and_from_several_processes(lines, make_config, tmp_path, monkeypatch):
    columns = dict(zip(("prompt", "response"), map(list, zip(*PAIRS, strict=True)), strict=True))
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    options = {"tokenizer": "bpe", "holdout_fraction": 0.2, "sequence_length": 4000, **FIELDS}
    monkeypatch.setattr(encoding, "PARALLEL_FROM", 0)
    monkeypatch.setattr(encoding, "CHUNK", 40)
    for source in (f"parquet:{tmp_path / 'a.parquet'}", f"jsonl:{lines}"):
        assert pairs(load_corpus(make_config(source, workers=2, **options), 300, seed=0)) == sorted(PAIRS)


def test_another_prompt_makes_another_document_and_other_data(write, make_config):
    def corpus(prompts, **fields):
        text = "\n".join(json.dumps({"prompt": p, "response": "the same"}) for p in prompts)
        return load_corpus(make_config(f"jsonl:{write({'b.jsonl': text}) / 'b.jsonl'}", **fields), 300, seed=0)

    one = corpus(["a", "b", "a"], **FIELDS)
    assert (one.counts.documents, one.counts.duplicates) == (2, 1)
    assert one.sha256 != corpus(["a", "c", "a"], **FIELDS).sha256


@pytest.mark.parametrize(
    "files, fields, words",
    [
        ({"a.jsonl": '{"response": "r"}'}, FIELDS, r"a\.jsonl:1 has no string 'prompt': set data\.prompt_field"),
        ({"a.jsonl": '{"prompt": 3, "response": "r"}'}, FIELDS, "has no string 'prompt'"),
    ],
)
def test_refused(write, make_config, files, fields, words):
    with pytest.raises(ConfigError, match=words):
        load_corpus(make_config(f"jsonl:{write(files) / 'a.jsonl'}", **fields), 300, seed=0)
    with pytest.raises(ConfigError, match="prompt_field='prompt' is of jsonl and parquet sources"):
        load_corpus(make_config("stdlib", prompt_field="prompt"), 300, seed=0)


def test_prompts_count_for_no_loss_and_are_routed(set_up_once):
    """Other targets in the prompts change nothing, other tokens there do; routing counts every token."""
    setup, state = set_up_once({"moe.capacity_factor": 4.0})
    batch = next(setup.data.train_batches(0, 1))
    scored = np.arange(16) >= np.arange(8)[:, None]
    batch = batch._replace(scored=batch.scored & scored)
    step = setup.compile_eval_step()
    sums = lambda b: jax.device_get(step(state.variables, setup.place(b)))
    expected, routing = sums(batch)
    assert expected.tokens.sum() == batch.scored.sum() < (batch.documents > 0).sum()
    assert routing[0]["tokens"].sum() == (batch.documents > 0).sum()
    same, _ = sums(batch._replace(targets=np.where(batch.scored, batch.targets, 7)))
    np.testing.assert_array_equal(same.nats, expected.nats)
    other, _ = sums(batch._replace(ids=np.where(batch.scored, batch.ids, 7)))
    assert abs(other.nats.sum() - expected.nats.sum()) > 1e-3
