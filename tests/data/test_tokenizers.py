import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from moe_jax.config.schema import DataConfig
from moe_jax.data.tokenizers import BPETokenizer, ByteTokenizer, TrainingText, bpe, check_vocab_size
from moe_jax.data.tokenizers.bpe import build_bpe

TEXTS = ["the cat sat on the mat; the cat sat. " * 20, "naïve café: 你好, мир\r\n\t\x00 🙂", " leading, trailing ", ""]
BATCH = [text.encode() for text in TEXTS]


@pytest.fixture(params=["bytes", "bpe"])
def tokenizer(request):
    return ByteTokenizer() if request.param == "bytes" else BPETokenizer(BPETokenizer.train(BATCH[:1], 280))


@pytest.mark.parametrize("text", [*TEXTS, "never seen: ζ", "<|endoftext|> </s> [UNK]"])
def test_round_trip(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == text
    assert tokenizer.bytes_per_token[ids].sum() == len(text.encode())
    assert tokenizer.end_of_document not in ids


def test_batch_equals_one_by_one(tokenizer):
    for ids, text in zip(tokenizer.encode_batch(BATCH), TEXTS, strict=True):
        np.testing.assert_array_equal(ids, tokenizer.encode(text))


def test_end_of_document_is_the_last_id_and_no_text(tokenizer):
    assert tokenizer.end_of_document == tokenizer.vocab_size - 1
    assert tokenizer.bytes_per_token.shape == (tokenizer.vocab_size,)
    assert tokenizer.bytes_per_token[-1] == 0 and tokenizer.bytes_per_token[:-1].min() == 1
    unused_by_the_tokenizer = tokenizer.vocab_size + 3
    ids = np.array([*tokenizer.encode("hé"), tokenizer.end_of_document, unused_by_the_tokenizer])
    assert tokenizer.decode(ids) == "hé"
    assert tokenizer.decode(tokenizer.encode("é")[:1]) == "\ufffd"


def test_bytes_are_their_own_ids():
    np.testing.assert_array_equal(ByteTokenizer().encode("é"), [0xC3, 0xA9])


def test_bpe_learns_frequent_words_within_its_vocabulary():
    tokenizer = BPETokenizer(BPETokenizer.train(BATCH[:1], 265))
    assert tokenizer.vocab_size == 265
    assert len(tokenizer.encode(" the cat")) == 2
    assert BPETokenizer(BPETokenizer.train([b"ab"], 300)).vocab_size == 258, "a short text has few pairs to merge"
    assert BPETokenizer(BPETokenizer.train(BATCH, 257)).vocab_size == 257


def test_bpe_is_trained_on_long_runs_in_parts(monkeypatch):
    """A word's pairs are merged in time that grows with the square of its length, so none is longer than a limit."""
    seen = []
    monkeypatch.setattr(tokenizers.Tokenizer, "train_from_iterator", lambda self, parts, trainer: seen.extend(parts))
    texts = ["a" * 2500 + " " + "1" * 1001, "word " * 1000, " " * 2000 + "-" * 999]
    BPETokenizer.train([text.encode() for text in texts], 300)
    assert "".join(seen) == "".join(texts)
    assert [len(part) for part in seen] == [1000, 1000, 1501, 1, 5000, 1000, 1999]


def test_bpe_of_ordinary_text_is_that_of_the_whole_text(monkeypatch):
    text = Path(os.__file__).read_text()
    whole = BPETokenizer.train([text.encode()], 400)
    monkeypatch.setattr(bpe, "_cut", lambda text: [text])
    assert BPETokenizer.train([text.encode()], 400) == whole


def test_bpe_does_not_depend_on_threads():
    program = (
        "from moe_jax.data.tokenizers import bpe, BPETokenizer; import sys;"
        "text = open(sys.argv[1], 'rb').read(); print(BPETokenizer.train(text.splitlines(True), 400))"
    )

    def train(threads):
        command = [sys.executable, "-c", program, os.__file__]
        environment = os.environ | {"RAYON_NUM_THREADS": threads, "PYTHONPATH": os.getcwd()}
        return subprocess.run(command, env=environment, capture_output=True, check=True).stdout

    assert train("1") == train("4")


def test_bpe_is_trained_once(tmp_path, monkeypatch):
    texts = TrainingText(len(BATCH), "digest", lambda: BATCH)
    first = build_bpe(texts, 270, tmp_path)
    monkeypatch.setattr(BPETokenizer, "train", lambda texts, vocab_size: f"trained for {vocab_size}")
    assert build_bpe(texts, 270, tmp_path) == first
    assert build_bpe(texts, 271, tmp_path) == "trained for 271"
    assert build_bpe(texts._replace(digest="other"), 270, tmp_path) == "trained for 270"


@pytest.mark.parametrize("name", ["bytes", "bpe"])
def test_a_vocabulary_that_is_too_small(name):
    config = DataConfig(tokenizer=name)
    check_vocab_size(config, 257)
    with pytest.raises(ValueError, match=rf"model\.vocab_size=256 is smaller than .*'{name}'.*: use at least 257"):
        check_vocab_size(config, 256)


def test_an_unknown_tokenizer():
    with pytest.raises(ValueError, match=r"data\.tokenizer='words' is unknown: choose one of bytes, bpe, hf:FILE, ids"):
        check_vocab_size(DataConfig(tokenizer="words"), 1000)
