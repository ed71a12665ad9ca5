"""`load_corpus` opens the corpus of a run in the cache, where it is built the first time."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging

from moe_jax.config.rules import MachineError
from moe_jax.config.schema import DataConfig
from moe_jax.data.build import build_corpus
from moe_jax.data.byte_counts import ByteCounts
from moe_jax.data.cache import cache_key, cache_root, cached
from moe_jax.data.packing import Rows, TokenizedDocuments, heldout_rows, training_rows
from moe_jax.data.shards import StoredTokens, read_numbers
from moe_jax.data.sources import parse_sources
from moe_jax.data.sources.source import Source
from moe_jax.data.tokenizers import Tokenizer, check_vocab_size, kind_of
from moe_jax.data.tokenizers.tokenizer import compact_dtype

FORMAT = 2  # to be raised whenever the same sources and configuration would build something else


@dataclasses.dataclass(frozen=True)
class Counts:
    """What the sources held and what became of it. Bytes are 0 where it is not known what ids stand for."""

    documents: int  # documents that are trained on or held out
    duplicates: int  # documents dropped because another has the same bytes
    skipped: int  # files (lines, rows, records) that are empty or not text
    train_bytes: dict[str, int]  # bytes by domain
    heldout_bytes: dict[str, int]  # bytes by domain


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """Tokenized text, ready to be iterated over."""

    tokenizer: Tokenizer
    sources: tuple[str, ...]  # as they are written in data.source
    domains: tuple[str, ...]  # sorted
    train_rows: tuple[Rows, ...]  # the rows of each source
    heldout_rows: tuple[Rows, ...]  # the rows of each domain, which may be none
    sha256: str  # depends on the tokens of both splits, the sequence length and the weights, not on seed or paths
    archives: dict[str, str]  # SHA-256 of the archive of each source that has one
    counts: Counts
    byte_counts: ByteCounts  # of documents that are text
    all_text: bool  # whether no source was tokenized elsewhere

    @property
    def knows_bytes(self) -> bool:
        """Whether it is known how many bytes of text the tokens stand for."""
        return bool(self.tokenizer.bytes_per_token.any())


def load_corpus(config: DataConfig, vocab_size: int, seed: int) -> Corpus:
    """The corpus of a run, which is built if `config.cache_dir` does not have it yet, or not whole.

    `vocab_size` is the model's; `seed` orders the training documents and nothing else. Raises ConfigError, in one line
    that names the field, for a source that is missing, malformed or empty, for weights that do not fit the sources, for
    a vocabulary that is too small, and where nothing could be held out; MachineError where files cannot be read or the
    cache cannot be written.
    """
    check_vocab_size(config, vocab_size)
    sources = parse_sources(config)
    key = _key(sources, config, vocab_size)
    root = cache_root(config)

    def build(draft: Path) -> None:
        build_corpus(sources, config, vocab_size, root, draft)
        if _key(sources, config, vocab_size) != key:
            raise MachineError(f"data.source={config.source!r} has changed while it was read: start again")

    corpus = cached(
        root / "corpora" / key, "the corpus", build, lambda entry: _open(entry, sources, config, vocab_size, seed)
    )
    _warn(corpus, config)
    return corpus


def _key(sources: Sequence[Source], config: DataConfig, vocab_size: int) -> str:
    kind, name = kind_of(config), config.tokenizer.partition(":")[0]
    return cache_key(
        FORMAT,
        [[source.spec, source.fingerprint()] for source in sources],
        [config.holdout_fraction, config.max_bytes, name, kind.fingerprint(config, vocab_size)],
    )


def _open(directory: Path, sources: Sequence[Source], config: DataConfig, vocab_size: int, seed: int) -> Corpus:
    description = json.loads((directory / "corpus.json").read_text(encoding="utf-8"))
    kind = kind_of(config)
    tokenizer = kind.open((directory / "tokenizer.json").read_text(encoding="utf-8"))
    domains, length = description["domains"], config.sequence_length

    def load(part: str, count: int) -> list[TokenizedDocuments]:
        return [_documents(directory, f"{part}_{i}", tokenizer) for i in range(count)]

    with np.load(directory / "byte_counts.npz") as arrays:
        byte_counts = ByteCounts(**{**arrays, "heldout_gzip_all": int(arrays["heldout_gzip_all"])})
    identity = [domains, description["digests"], tokenizer.vocab_size, length, [float(w) for w in config.weights]]
    fingerprint = None if kind.trained else kind.fingerprint(config, vocab_size)
    if fingerprint is not None:  # the same ids mean something else with another file
        identity.append(fingerprint)
    return Corpus(
        tokenizer=tokenizer,
        sources=tuple(source.spec for source in sources),
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
        all_text=description["all_text"],
    )


def _documents(directory: Path, name: str, tokenizer: Tokenizer) -> TokenizedDocuments:
    return TokenizedDocuments(
        read_numbers(directory / f"{name}.domains", "<i4"),
        read_numbers(directory / f"{name}.starts", "<i8"),
        StoredTokens(directory, name, compact_dtype(tokenizer.vocab_size)),
        tokenizer.end_of_document,
        read_numbers(prompts, "<i8") if (prompts := directory / f"{name}.prompts").exists() else None,
    )


def _warn(corpus: Corpus, config: DataConfig) -> None:
    """Says so where the split leaves hardly anything to train on."""
    train, heldout = (sum(sizes.values()) for sizes in (corpus.counts.train_bytes, corpus.counts.heldout_bytes))
    if heldout > train and config.holdout_fraction <= 0.5 and not config.max_bytes:
        logging.warning(
            "data.holdout_fraction=%s of the documents are %d bytes and leave %d to train on, since some documents are "
            "far larger than others: split those into several files",
            *(config.holdout_fraction, heldout, train),
        )
    for source, rows in zip(corpus.sources, corpus.train_rows, strict=True):
        if cut := rows.long_prompts():
            logging.warning(
                "data.source=%r: %d of %d prompts are as long as data.sequence_length=%d or longer, so that their text "
                "never stands in a row with all of its prompt: raise it",
                *(source, cut, rows.num_documents, config.sequence_length),
            )
        if rows.is_padded:
            logging.warning(
                "data.source=%r has less text to train on than one row of data.sequence_length=%d: give more text, or "
                "shorter rows",
                *(source, config.sequence_length),
            )
