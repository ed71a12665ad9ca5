"""Corpora that are larger than memory: what they take is bounded, and worker processes change nothing."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tiny_run
import tokenizers
from tokenizers import models, pre_tokenizers

from moe_jax.config.rules import MachineError
from moe_jax.data import encoding, shards
from moe_jax.data.corpus import load_corpus
from moe_jax.data.encoding import Item, encoder
from moe_jax.data.packing import TokenizedDocuments, heldout_rows
from moe_jax.data.shards import ShardWriter, StoredTokens, read_numbers
from moe_jax.data.tokenizers import BPETokenizer

TEXTS = [f"document {i}: " + "the router sends each token " * (i % 40) for i in range(300)]


@pytest.fixture
def serialized():
    return BPETokenizer.train([text.encode() for text in TEXTS], 300)


def encode(serialized, workers):
    items = [Item(i, text.encode()) for i, text in enumerate(TEXTS)]
    with encoder("bpe", serialized, total_bytes=1 << 30, workers=workers) as encode:
        return [*encode(items[:200]), *encode(items[200:])]


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(encoding, "CHUNK", 4000)


def test_the_same_in_any_number_of_processes(serialized, small_chunks):
    alone, several = encode(serialized, 1), encode(serialized, 3)
    tokenizer = BPETokenizer(serialized)
    for (key, ids), (other_key, other_ids), (number, text) in zip(alone, several, enumerate(TEXTS), strict=True):
        assert key == other_key == number
        np.testing.assert_array_equal(ids, other_ids)
        np.testing.assert_array_equal(ids, tokenizer.encode(text))


def test_a_process_that_dies_is_one_line(serialized, small_chunks, monkeypatch):
    monkeypatch.setattr(encoding.sys, "executable", "/bin/false")
    with pytest.raises(MachineError, match=r"a process that tokenizes ended with exit code 1: it may have run out"):
        encode(serialized, 2)


def test_a_worker_does_not_import_jax():
    program = "import sys, moe_jax.data.worker; assert 'jax' not in sys.modules and 'grain' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | {"PYTHONPATH": os.getcwd()})


def test_a_corpus_is_the_same_with_workers(letters, make_config, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "PARALLEL_FROM", 0)
    alone, several = (
        load_corpus(
            make_config(f"text:{letters}", tokenizer="bpe", workers=n, cache_dir=str(tmp_path / str(n))), 300, 0
        )
        for n in (1, 2)
    )
    assert alone.sha256 == several.sha256


@pytest.mark.parametrize("resident", [0, 1 << 24])
@pytest.mark.parametrize("shard", [4, 7, 1 << 27])
def test_shards_hold_what_was_written(tmp_path, monkeypatch, shard, resident):
    monkeypatch.setattr(shards, "SHARD_TOKENS", shard)
    monkeypatch.setattr(shards, "RESIDENT", resident)
    monkeypatch.setattr(shards, "BUFFER", 5)
    documents = [np.arange(n, dtype=np.uint8) for n in (3, 0, 11, 1, 2)]
    writer = ShardWriter(tmp_path, "part", np.uint16, 99)
    for number, ids in enumerate(documents):
        writer.add(ids, number % 2)
    digest = writer.finish()
    expected = np.concatenate([part for ids in documents for part in (ids, [99])])
    tokens = StoredTokens(tmp_path, "part", np.uint16)
    assert len(tokens) == len(expected) and tokens.dtype == np.uint16
    for start in range(len(expected) + 1):
        for stop in range(start, len(expected) + 1):
            np.testing.assert_array_equal(tokens[start:stop], expected[start:stop])
    assert sorted(path.stat().st_size for path in tmp_path.glob("part.tokens.*"))[-1] <= 2 * shard
    domains, starts = read_numbers(tmp_path / "part.domains", "<i4"), read_numbers(tmp_path / "part.starts", "<i8")
    assert domains.tolist() == [0, 1, 0, 1, 0] and starts.tolist() == [0, 4, 5, 17, 19, 22]
    rows = heldout_rows(TokenizedDocuments(domains, starts, tokens, 99), 6)
    assert np.concatenate([row.targets for row in rows])[: len(expected)].tolist() == expected.tolist()
    assert len(digest) == 64


def test_a_system_that_reads_little_at_a_time(tmp_path, monkeypatch):
    """As a network file system may: what is missing is read from where the last piece ended."""
    monkeypatch.setattr(shards, "RESIDENT", 0)
    writer = ShardWriter(tmp_path, "part", np.uint16, 999)
    writer.add(np.arange(300, 350, dtype=np.uint16), 0)
    writer.finish()
    read = os.preadv
    monkeypatch.setattr(shards.os, "preadv", lambda file, views, at: read(file, [views[0][:3]], at))
    tokens = StoredTokens(tmp_path, "part", np.uint16)
    np.testing.assert_array_equal(tokens[5:45], np.arange(305, 345))


def test_a_shard_that_is_cut_while_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "RESIDENT", 0)
    writer = ShardWriter(tmp_path, "part", np.uint16, 99)
    writer.add(np.arange(9, dtype=np.uint8), 0)
    writer.finish()
    tokens = StoredTokens(tmp_path, "part", np.uint16)
    (tmp_path / "part.tokens.00000").write_bytes(b"")
    with pytest.raises(
        MachineError, match=r"part\.tokens\.00000 cannot be read \(it has become shorter\): start again"
    ):
        tokens[2:5]


LIMIT = 128 << 20  # bytes of memory beyond what the interpreter and its libraries take
PROGRAM = """
    import itertools, json, resource, sys
    from moe_jax.config.schema import DataConfig
    from moe_jax.data.corpus import load_corpus
    from moe_jax.data.pipeline import heldout_batches, train_iterator

    def status(name):
        return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(name))

    config, limit, before = DataConfig(**json.loads(sys.argv[1])), int(sys.argv[2]), status("VmRSS")
    resource.setrlimit(resource.RLIMIT_DATA, (status("VmData") + limit,) * 2)
    corpus = load_corpus(config, 1000, seed=0)
    for batch in itertools.islice(train_iterator(corpus, config, seed=0), 300):
        assert batch.ids.shape == (config.batch_size, config.sequence_length)
    next(heldout_batches(corpus, config.batch_size))
    print(sum(corpus.counts.train_bytes.values()) + sum(corpus.counts.heldout_bytes.values()))
    print(status("VmHWM") - before)
"""


TRAINS = """
    import json, pathlib, resource, sys
    from moe_jax.config import default_config
    from moe_jax.resolve import resolve
    from moe_jax.train.loop import train

    def status(name):
        return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(name))

    def run(name, source):
        config = default_config()
        config.update_from_flattened_dict(json.loads(sys.argv[1]) | {"data.source": source, "data.workers": 1})
        assert train(resolve(config), pathlib.Path(sys.argv[3]) / name) == 0

    limit, folder = int(sys.argv[2]), sys.argv[3]
    run("small", f"jsonl:{folder}/small.jsonl")  # what training takes by itself: compiler, programs, threads
    before = status("VmHWM")
    resource.setrlimit(resource.RLIMIT_DATA, (status("VmData") + limit,) * 2)
    run("large", f"jsonl:{folder}/large.jsonl")
    print(status("VmHWM") - before)
"""


def write_text(path, size):
    """JSONL of about so many bytes."""
    random = np.random.RandomState(0)
    words = [bytes(random.randint(97, 123, size).astype(np.uint8)) for size in random.randint(2, 9, 5000)]
    with path.open("wb") as file:
        while file.tell() < size:
            text = b" ".join(words[i] for i in random.randint(0, len(words), 1000))
            file.write(b'{"text": "' + text + b'"}\n')


def run_program(program, *arguments):
    """The words that a program printed; it has to end well."""
    command = [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


@pytest.mark.soak
def test_a_corpus_four_times_larger_than_memory_trains(tmp_path):
    write_text(tmp_path / "small.jsonl", 1 << 20)
    write_text(tmp_path / "large.jsonl", 4 * LIMIT)
    fields = tiny_run.TINY | {"data.cache_dir": f"{tmp_path}/cache", "data.holdout_fraction": 0.01, "eval.batches": 2}
    grown = run_program(TRAINS, json.dumps(fields), LIMIT, tmp_path)[-1]
    assert int(grown) < LIMIT
    summary = json.loads((tmp_path / "large/summary.json").read_text())
    assert summary["steps"] == tiny_run.TINY["train.steps"] and summary["eval_loss"] > 0


@pytest.mark.soak
@pytest.mark.parametrize("tokenizer", ["bytes", "hf"])
def test_a_corpus_four_times_larger_than_memory_is_built_and_read(tmp_path, tokenizer):
    write_text(tmp_path / "large.jsonl", 4 * LIMIT)
    if tokenizer == "hf":
        bpe = tokenizers.Tokenizer(models.WordLevel({"<unk>": 0, "ab": 1}, unk_token="<unk>"))
        bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        bpe.save(str(tmp_path / "tokenizer.json"))
    config = {
        "source": f"jsonl:{tmp_path}/large.jsonl",
        "cache_dir": str(tmp_path / "cache"),
        "tokenizer": {"hf": f"hf:{tmp_path}/tokenizer.json"}.get(tokenizer, tokenizer),
        "sequence_length": 512,
        "workers": 2,
    }
    size, grown = map(int, run_program(PROGRAM, json.dumps(config), LIMIT))
    assert size > 3.9 * LIMIT
    assert grown < LIMIT
