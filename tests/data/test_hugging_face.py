"""Tokenizers from a file tokenizer.json: the ids are the library's, and tokens stand for the bytes of the text."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from moe_jax.config.schema import DataConfig
from moe_jax.data.corpus import load_corpus
from moe_jax.data.tokenizers import TrainingText, check_vocab_size, kind_of

REAL = [
    Path(os.__file__).read_text()[:20_000],
    "naïve café: 你好, мир\r\n\t 🙂  two  spaces",
    " leading",
    "x",
    "<|end|> </s>",
]


def byte_level():
    """Like GPT-2's: bytes as characters, no space before the text."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return tokenizer, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|end|>", "</s>"])


def prefixed_byte_level():
    """Like RoBERTa's: a space before the text."""
    tokenizer, trainer = byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer, trainer


def sentencepiece():
    """Like Llama 2's: spaces as a character of their own, one before the text, bytes for what has no token."""
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(strip)
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    return tokenizer, trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", "<s>", "</s>", "<|end|>", *fallback])


def metaspace():
    """Like newer Llama-style files: the same without a space before the text."""
    tokenizer, trainer = sentencepiece()
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer, trainer


KINDS = {kind.__name__: kind for kind in (byte_level, prefixed_byte_level, sentencepiece, metaspace)}


@pytest.fixture(scope="module", params=KINDS)
def file(request, tmp_path_factory):
    """A tokenizer.json with an end of text around every text, as models' files often have it."""
    tokenizer, trainer = KINDS[request.param]()
    tokenizer.train_from_iterator([REAL[0]], trainer)
    parsed = json.loads(tokenizer.to_str())
    if parsed["model"].get("byte_fallback"):  # trained as special tokens, but in models' files they are plain ones
        special = {token["content"] for token in parsed["added_tokens"] if not token["content"].startswith("<0x")}
        parsed["added_tokens"] = [token for token in parsed["added_tokens"] if token["content"] in special]
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(parsed))
    end = tokenizer.token_to_id("</s>")
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", end)])
    path = tmp_path_factory.mktemp(request.param) / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def config_of(path, **fields):
    return DataConfig(tokenizer=f"hf:{path}", **fields)


def opened(path, **fields):
    config = config_of(path, **fields)
    return kind_of(config).open(kind_of(config).build(TrainingText(0, "", lambda: ()), config, 0, Path()))


@pytest.mark.parametrize("text", REAL, ids=range(len(REAL)))
def test_ids_of_the_library_and_bytes_of_the_text(file, text):
    tokenizer, library = opened(file, end_of_document="</s>"), tokenizers.Tokenizer.from_file(str(file))
    ids = tokenizer.encode(text)
    if "</s>" not in text:
        np.testing.assert_array_equal(ids, library.encode(text, add_special_tokens=False).ids)
    assert tokenizer.end_of_document not in ids, "also where the text spells it"
    assert tokenizer.decode(np.append(ids, tokenizer.end_of_document)).removeprefix(" ") == text.removeprefix(" ")
    # RoBERTa's kind puts no space before a text that begins with one, which a table of tokens cannot know.
    unknown = text.startswith(" ") and "prefixed" in str(file)
    assert tokenizer.bytes_per_token[[*ids, tokenizer.end_of_document]].sum() == len(text.encode()) - unknown
    (batch,) = tokenizer.encode_batch([text.encode()])
    np.testing.assert_array_equal(batch, ids)


def test_the_end_of_document(file):
    vocabulary = tokenizers.Tokenizer.from_file(str(file)).get_vocab()
    new = opened(file)
    assert (new.end_of_document, new.vocab_size) == (len(vocabulary), len(vocabulary) + 1)
    named = opened(file, end_of_document="<|end|>")
    assert (named.end_of_document, named.vocab_size) == (vocabulary["<|end|>"], len(vocabulary))
    beside = file.parent / "tokenizer_config.json"
    for eos in ("</s>", {"content": "</s>", "lstrip": False}):
        beside.write_text(json.dumps({"eos_token": eos}))
        assert opened(file).end_of_document == vocabulary["</s>"]
    beside.unlink()
    with pytest.raises(
        ValueError, match=r"data\.end_of_document='<x>' is no token of data\.tokenizer='hf:.*': name one"
    ):
        opened(file, end_of_document="<x>")


def test_an_id_that_no_array_has(file, tmp_path):
    parts = json.loads(file.read_text())
    vocabulary = parts["model"]["vocab"]
    vocabulary[max(vocabulary, key=vocabulary.get)] = 4294967290
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(parts))
    with pytest.raises(ValueError, match="has the id 4294967290, more than"):
        check_vocab_size(config_of(path), 1000)


@pytest.mark.parametrize("content", [None, "", "{}", "[" * 100, b"\xff"])
def test_what_is_no_tokenizer(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=r"data\.tokenizer='hf:.*' is no (tokenizer\.json|file of text)") as error:
        check_vocab_size(config_of(path), 1000)
    assert "\n" not in str(error.value)


def test_a_vocabulary_that_is_too_small(file):
    size = opened(file).vocab_size
    check_vocab_size(config_of(file), size)
    with pytest.raises(ValueError, match=rf"model\.vocab_size={size - 1} is smaller .*: use at least {size}"):
        check_vocab_size(config_of(file), size - 1)


def test_a_corpus(file, letters, make_config, tmp_path):
    config = make_config(f"text:{letters}", tokenizer=f"hf:{file}", end_of_document="</s>")
    corpus = load_corpus(config, 1000, seed=0)
    heldout = np.concatenate([row.targets[row.documents > 0] for rows in corpus.heldout_rows for row in rows])
    assert corpus.tokenizer.bytes_per_token[heldout].sum() == sum(corpus.counts.heldout_bytes.values())
    moved = tmp_path / "elsewhere.json"
    moved.write_bytes(file.read_bytes())
    assert load_corpus(dataclasses.replace(config, tokenizer=f"hf:{moved}"), 1000, seed=0).sha256 == corpus.sha256
    moved.write_text(json.dumps(json.loads(file.read_text()) | {"version": "1.0"}, indent=4))
    other = load_corpus(dataclasses.replace(config, tokenizer=f"hf:{moved}"), 1000, seed=0)
    assert other.sha256 != corpus.sha256, "another file may mean something else by the same ids"


def test_a_tokenizer_that_loses_text_is_said_to(letters, make_config, tmp_path, caplog):
    tokenizer = tokenizers.Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    load_corpus(make_config(f"text:{letters}", tokenizer=f"hf:{tmp_path}/tokenizer.json"), 1000, seed=0)
    assert "so bits per byte are approximate" in caplog.text


def test_truncation_and_padding_of_the_file_are_not_applied(file, tmp_path):
    """Files of models that classify have both, and a document would lose all behind its first 512 tokens."""
    library = tokenizers.Tokenizer.from_file(str(file))
    library.enable_truncation(4)
    library.enable_padding(length=8)
    library.save(str(tmp_path / "tokenizer.json"))
    text = "the router sends each token to one expert"
    whole, cut = opened(file, end_of_document="</s>"), opened(tmp_path / "tokenizer.json", end_of_document="</s>")
    assert len(whole.encode(text)) > 8
    np.testing.assert_array_equal(cut.encode(text), whole.encode(text))
    (batch,) = cut.encode_batch([text.encode()])
    np.testing.assert_array_equal(batch, whole.encode(text))


def test_bytes_of_continuing_and_of_added_tokens(tmp_path):
    """WordPiece writes ## in front of a token that continues a word; an added token stands for its own text."""
    vocabulary = {token: i for i, token in enumerate(["[UNK]", "out", "##put", "##s", "é"])}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_tokens(["<café>", "##"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    made = opened(tmp_path / "tokenizer.json")
    known = made.encode("outputs é <café> ##")
    assert made.bytes_per_token[known].tolist() == [3, 3, 1, 2, len("<café>".encode()), 2]
    byte_level, trainer = KINDS["byte_level"]()
    byte_level.train_from_iterator([REAL[0]], trainer)
    byte_level.add_tokens(["Ġé"])  # two letters of the byte alphabet, and of the added text four bytes
    byte_level.save(str(tmp_path / "tokenizer.json"))
    made = opened(tmp_path / "tokenizer.json")
    assert made.bytes_per_token[made.encode("Ġé")].tolist() == [len("Ġé".encode())]
