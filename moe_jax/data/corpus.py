"""`load_corpus` reads, de-duplicates, splits and tokenizes the sources once and then opens the result in the cache."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging

from moe_jax.config.schema import DataConfig
from moe_jax.data.byte_counts import ByteCounts, count_bytes
from moe_jax.data.cache import cache_key, publish
from moe_jax.data.documents import Document, deduplicate
from moe_jax.data.packing import Rows, TokenizedDocuments, heldout_rows, training_rows
from moe_jax.data.sources import Source, parse_sources
from moe_jax.data.split import Split, holdout_split, sample
from moe_jax.data.tokenizers import TOKENIZERS, Tokenizer, check_vocab_size

FORMAT = 1  # to be raised whenever the same sources and configuration would build something else


@dataclasses.dataclass(frozen=True)
class Counts:
    """What the sources held and what became of it."""

    documents: int  # documents that are trained on or held out
    duplicates: int  # documents dropped because another has the same bytes
    skipped: int  # files that are empty or not text
    train_bytes: dict[str, int]  # bytes by domain
    heldout_bytes: dict[str, int]  # bytes by domain


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """Tokenized text, ready to be iterated over."""

    tokenizer: Tokenizer
    domains: tuple[str, ...]  # sorted
    train_rows: tuple[Rows, ...]  # the rows of each source
    heldout_rows: tuple[Rows, ...]  # the rows of each domain, which may be none
    sha256: str  # depends on the tokens of both splits, the sequence length and the weights, not on seed or paths
    archives: dict[str, str]  # SHA-256 of the archive of each source that has one
    counts: Counts
    byte_counts: ByteCounts


def load_corpus(config: DataConfig, vocab_size: int, seed: int) -> Corpus:
    """The corpus of a run, which is built if `config.cache_dir` does not have it yet.

    `vocab_size` is the model's; `seed` orders the training documents and nothing else. Raises ValueError, in one line
    that names the field, for a source that is missing, malformed or empty, for weights that do not fit the sources, for
    a vocabulary that is too small, and where nothing could be held out.
    """
    check_vocab_size(config.tokenizer, vocab_size)
    sources = parse_sources(config)
    key = cache_key(
        FORMAT,
        [[source.spec, source.fingerprint()] for source in sources],
        [config.holdout_fraction, config.max_bytes, config.tokenizer, _trained_size(config, vocab_size)],
    )
    cache_dir = Path(config.cache_dir).expanduser()
    directory = cache_dir / "corpora" / key
    if not directory.is_dir():
        with publish(directory) as draft:
            _build(sources, config, vocab_size, cache_dir, draft)
    return _open(directory, config, seed)


def _trained_size(config: DataConfig, vocab_size: int) -> int:
    """The vocabulary size that the tokenizer is trained for; 0 if it is not trained."""
    return vocab_size if TOKENIZERS[config.tokenizer].trained else 0


def _build(sources: Sequence[Source], config: DataConfig, vocab_size: int, cache_dir: Path, directory: Path) -> None:
    """Fills `directory`. Meanwhile the text of all documents is in memory."""
    logging.info("Reading data.source=%s; the next start finds it in %s", config.source, cache_dir)
    readings = [source.read() for source in sources]
    kept, duplicates = deduplicate([reading.documents for reading in readings])
    _check_kept(sources, kept)
    splits = _splits(kept, config)
    train = [split.train for split in splits]
    domains = sorted({document.domain for documents in kept for document in documents})
    heldout = [[d for split in splits for d in split.heldout if d.domain == domain] for domain in domains]
    all_train, all_heldout = list(itertools.chain(*train)), list(itertools.chain(*heldout))

    kind = TOKENIZERS[config.tokenizer]
    serialized = kind.build([document.text for document in all_train], vocab_size, cache_dir)
    (directory / "tokenizer.json").write_text(serialized, encoding="utf-8")
    digests = _tokenize(kind.open(serialized), domains, {"train": train, "heldout": heldout}, directory)
    np.savez(directory / "byte_counts.npz", **dataclasses.asdict(count_bytes(all_train, heldout)))
    counts = Counts(
        documents=len(all_train) + len(all_heldout),
        duplicates=duplicates,
        skipped=sum(reading.skipped for reading in readings),
        train_bytes=_bytes_by_domain(all_train, domains),
        heldout_bytes=_bytes_by_domain(all_heldout, domains),
    )
    description = {
        "domains": domains,
        "sources": len(sources),
        "digests": digests,
        "archives": {source.spec: r.sha256 for source, r in zip(sources, readings, strict=True) if r.sha256},
        "counts": dataclasses.asdict(counts),
    }
    (directory / "corpus.json").write_text(json.dumps(description, indent=2), encoding="utf-8")
    logging.info("Read %s", counts)


def _check_kept(sources: Sequence[Source], kept: Sequence[Sequence[Document]]) -> None:
    for source, documents in zip(sources, kept, strict=True):
        if not documents:
            raise ValueError(f"data.source={source.spec!r} only repeats the sources before it: leave it out")


def _splits(sources: Sequence[Sequence[Document]], config: DataConfig) -> list[Split]:
    """The split of each source; `max_bytes` is shared out in proportion to the sources' training text."""
    splits = [holdout_split(documents, config.holdout_fraction) for documents in sources]
    if config.holdout_fraction and not any(split.heldout for split in splits):
        raise ValueError(
            f"data.source={config.source!r} has one document a domain, so none can be held out: split the files"
        )
    sizes = [sum(len(document.text) for document in split.train) for split in splits]
    return [
        split._replace(train=sample(split.train, config.max_bytes * size / sum(sizes)))
        for split, size in zip(splits, sizes, strict=True)
    ]


def _tokenize(
    tokenizer: Tokenizer, domains: list[str], parts: dict[str, list[list[Document]]], directory: Path
) -> list[str]:
    """Writes `directory/KIND_i.*.npy` for the i-th list of each kind, and returns the digests of all."""
    digests = []
    for kind, lists in parts.items():
        for i, documents in enumerate(lists):
            encoded = tokenizer.encode_batch([document.text for document in documents])
            indices = [domains.index(document.domain) for document in documents]
            tokenized = TokenizedDocuments.join(encoded, indices, tokenizer.end_of_document)
            tokenized.save(directory, f"{kind}_{i}")
            digests.append(tokenized.digest())
    return digests


def _bytes_by_domain(documents: Sequence[Document], domains: Sequence[str]) -> dict[str, int]:
    total = dict.fromkeys(domains, 0)
    for document in documents:
        total[document.domain] += len(document.text)
    return total


def _open(directory: Path, config: DataConfig, seed: int) -> Corpus:
    description = json.loads((directory / "corpus.json").read_text(encoding="utf-8"))
    tokenizer = TOKENIZERS[config.tokenizer].open((directory / "tokenizer.json").read_text(encoding="utf-8"))
    domains, length = description["domains"], config.sequence_length

    def load(kind: str, count: int) -> list[TokenizedDocuments]:
        return [TokenizedDocuments.load(directory, f"{kind}_{i}", tokenizer.end_of_document) for i in range(count)]

    with np.load(directory / "byte_counts.npz") as arrays:
        byte_counts = ByteCounts(**{**arrays, "heldout_gzip_all": int(arrays["heldout_gzip_all"])})
    identity = [domains, description["digests"], tokenizer.vocab_size, length, [float(w) for w in config.weights]]
    return Corpus(
        tokenizer=tokenizer,
        domains=tuple(domains),
        train_rows=tuple(
            training_rows(documents, length, (seed % 2**32, i))
            for i, documents in enumerate(load("train", description["sources"]))
        ),
        heldout_rows=tuple(heldout_rows(documents, length) for documents in load("heldout", len(domains))),
        sha256=hashlib.sha256(json.dumps(identity).encode()).hexdigest(),
        archives=description["archives"],
        counts=Counts(**description["counts"]),
        byte_counts=byte_counts,
    )
