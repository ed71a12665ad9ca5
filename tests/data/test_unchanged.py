"""The data of published results: tokens, split, order and hashes of a fixed corpus, as they were first built."""

import hashlib
import io
import itertools
import json
import random
import tarfile

import numpy as np
import pytest

from moe_jax.data.corpus import load_corpus
from moe_jax.data.pipeline import heldout_batches, train_iterator

WORDS = ("the", "router", "sends", "each", "token", "to", "one", "expert;", "naïve", "café", "你好", "мир", "x=1")
WORDS += ("def", "return(self):", "1234", "—", "…")

# SHA-256 of the corpus, digest of its batches, digest of what was counted.
EXPECTED = {
    "text-bytes": ("c14bb4bb96a4fdf1", "8a0f36557777e812", "6903083ecefe8d2c"),
    "text-bpe": ("e1a2df6d10ff0b54", "c630949ed44c0a26", "6903083ecefe8d2c"),
    "jsonl-bytes": ("51f99dca0e8e910a", "e7942e502483b968", "aa7eca6afeabf758"),
    "mixture-bpe": ("37e0b25367d1d247", "aec0921c6498d968", "81774cbfbd305c36"),
    "sample-bytes": ("19d447bdc28f7559", "b9277d6076cf74b0", "3612fd5d0dc2c0bf"),
    "sample-bpe": ("bd06aa5f129ec8dc", "3f660a3b44f54c9c", "8537d57c335de331"),
}
CASES = {
    "text-bytes": ("text:{root}/files", {}),
    "text-bpe": ("text:{root}/files", {"tokenizer": "bpe"}),
    "jsonl-bytes": ("jsonl:{root}/*.jsonl", {"text_field": "body", "holdout_fraction": 0.3}),
    "mixture-bpe": (
        "text:{root}/files,jsonl:{root}/*.jsonl,pypi:Tiny==1.0",
        {"text_field": "body", "weights": (0.5, 2.0, 1.0), "tokenizer": "bpe", "holdout_fraction": 0.2},
    ),
    "sample-bytes": (
        "pypi:Tiny==1.0,text:{root}/files/*/*.txt",
        {"max_bytes": 6000, "holdout_fraction": 0.1},
    ),
    "sample-bpe": ("text:{root}/files", {"max_bytes": 5000, "tokenizer": "bpe"}),
}


def write_corpus(root):
    """Text files of three domains (UTF-8, Latin-1, empty, binary, twice the same), lines of JSON, a source archive."""
    draw = random.Random(1)

    def text():
        return " ".join(draw.choices(WORDS, k=draw.randint(1, 120))) + draw.choice(["", "\n", "\r\n\t"])

    for domain, count in (("news", 23), ("mail", 9), ("deep/er", 14)):
        (root / "files" / domain).mkdir(parents=True)
        for i in range(count):
            (root / "files" / domain / f"{i:02}.{draw.choice(['txt', 'md'])}").write_bytes(text().encode())
    for name, data in {"a-b.txt": b"top", "mail.txt": "élève ".encode("latin-1") * 5 + b"x" * 90, "empty": b""}.items():
        (root / "files" / name).write_bytes(data)
    (root / "files" / "mail" / "binary").write_bytes(b"\0\1")
    (root / "files" / "mail" / "twin.txt").write_bytes((root / "files" / "a-b.txt").read_bytes())
    for name, count in (("first", 31), ("second", 12)):
        lines = [{"body": text()} | ({"domain": f"d{i % 3}"} if i % 4 == 0 else {}) for i in range(count)]
        (root / f"{name}.jsonl").write_text("\n\n".join(map(json.dumps, [*lines, lines[0], {"body": ""}])))
    archive = root / "cache" / "archives" / "tiny-1.0"
    archive.mkdir(parents=True)
    with tarfile.open(archive / "tiny-1.0.tar.gz", "w:gz") as tar:
        names = [f"{folder}/{i}{end}" for folder in ("docs", "tiny", "tests") for i, end in enumerate((".py", ".txt"))]
        for name in [*names, "tiny/locale/de.po", "README.rst", "tiny/10.py", "tiny-more/1.py"]:
            member, data = tarfile.TarInfo(f"Tiny-1.0/{name}"), text().encode()
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("unchanged")
    write_corpus(root)
    return root


def digest(*values):
    """A short hash of arrays and JSON values."""
    hashed = hashlib.sha256()
    for value in values:
        hashed.update(value.tobytes() if isinstance(value, np.ndarray) else json.dumps(value, sort_keys=True).encode())
    return hashed.hexdigest()[:16]


def digests(corpus, config):
    batches = [*itertools.islice(train_iterator(corpus, config, seed=3), 40), *heldout_batches(corpus, 4)]
    assert all((batch.scored == (batch.documents > 0)).all() for batch in batches)
    counts, counted = corpus.counts, corpus.byte_counts
    return (
        corpus.sha256[:16],
        digest(*(array for b in batches for array in (b.ids, b.targets, b.documents, b.domain))),
        digest(
            [counts.documents, counts.duplicates, counts.skipped, counts.train_bytes, counts.heldout_bytes],
            *(counted.train, counted.heldout),
        ),
    )


@pytest.mark.parametrize("case", CASES)
def test_tokens_split_order_and_hashes(root, make_config, case):
    source, fields = CASES[case]
    config = make_config(source.format(root=root), cache_dir=str(root / "cache"), sequence_length=24, **fields)
    corpus = load_corpus(config, 400, seed=3)
    assert digests(corpus, config) == EXPECTED[case]
