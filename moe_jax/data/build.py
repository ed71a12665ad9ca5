"""Builds a corpus: two passes over the sources, with an index of the documents between them.

The first pass reads every document and notes hashes of its text and name (`index.py`); then the index says which
documents are kept, held out and trained on (`split.py`). The second pass reads them again and tokenizes them in order,
in several processes if that is worth it, into shards (`shards.py`).

Memory does not grow with the corpus: it stays below 400 MiB in this process and 200 MiB in each that tokenizes, plus
ten times the largest document. Training a BPE takes more, up to 1 GiB, on at most `TRAINED_ON` bytes of text. Of each
document, 85 bytes are on disk while the corpus is built, and 12 remain.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from moe_jax.config.rules import ConfigError, MachineError
from moe_jax.config.schema import DataConfig
from moe_jax.data.byte_counts import ByteCounter
from moe_jax.data.documents import Document
from moe_jax.data.encoding import Item, encoder
from moe_jax.data.index import HELDOUT, KEPT, TOKENIZER, TRAIN, Index, text_hash
from moe_jax.data.progress import progress
from moe_jax.data.shards import ShardWriter
from moe_jax.data.sources.source import Source
from moe_jax.data.split import deduplicate, hold_out, sample, sample_training
from moe_jax.data.tokenizers import Tokenizer, TrainingText, kind_of
from moe_jax.data.tokenizers.tokenizer import compact_dtype

TRAINED_ON = 1 << 27  # bytes of text that a tokenizer is trained on; of more text, a sample by the names' hashes
INEXACT = 0.001  # of the text's bytes: by more than that, what tokens stand for is said to be approximate


class Part(NamedTuple):
    """Where a document goes."""

    name: str  # of the shards
    domain: int
    heldout: bool


def build_corpus(
    sources: Sequence[Source], config: DataConfig, vocab_size: int, cache_dir: Path, directory: Path
) -> None:
    """Fills `directory`. Raises ConfigError for sources that hold nothing to train on or to hold out."""
    logging.info("Reading data.source=%s; the next start finds it in %s", config.source, cache_dir)
    work = directory / "work"
    work.mkdir()
    index = _read(sources, work)
    duplicates = deduplicate(index, work)
    _check_kept(sources, index)
    hold_out(index, config.holdout_fraction)
    if config.holdout_fraction and not any((index.flags[positions] & HELDOUT).any() for positions, _ in index.chunks()):
        raise ConfigError(
            f"data.source={config.source!r} has one document a domain, so none can be held out: split the files"
        )
    sample_training(index, config.max_bytes)
    kind = kind_of(config)
    if kind.trained:
        sample(index, TRAINED_ON, TRAIN, TOKENIZER)
    serialized = kind.build(_training_text(sources, index), config, vocab_size, cache_dir)
    (directory / "tokenizer.json").write_text(serialized, encoding="utf-8")
    described = _Second(sources, index, config, kind.open(serialized), serialized, directory).run()
    described["counts"] |= {"duplicates": duplicates, "skipped": index.skipped}
    described["archives"] = {source.spec: source.sha256() for source in sources if source.sha256()}
    (directory / "corpus.json").write_text(json.dumps(described, indent=2), encoding="utf-8")
    logging.info("Read %s", described["counts"])
    index.close()
    shutil.rmtree(work)


def _read(sources: Sequence[Source], work: Path) -> Index:
    index = Index(work)
    with progress("Reading") as advance:
        for source in sources:
            index.add_source(source.spec, _counted(source.read(), advance))
    index.complete()
    return index


def _counted(documents: Iterator[Document | None], advance: Callable[[int], None]) -> Iterator[Document | None]:
    for document in documents:
        advance(len(document.text) if document is not None else 0)
        yield document


def _check_kept(sources: Sequence[Source], index: Index) -> None:
    for source, span in zip(sources, index.spans, strict=True):
        if not any((index.flags[positions] & KEPT).any() for positions, _ in index.chunks(span)):
            raise ConfigError(f"data.source={source.spec!r} only repeats the sources before it: leave it out")


def _reread(source: Source, index: Index, span: range) -> Iterator[tuple[Document, int]]:
    """Each document of a source with its flags. Raises MachineError if the source no longer is what the index says."""
    changed = MachineError(f"data.source={source.spec!r} has changed while it was read: start again")
    documents = (document for document in source.read() if document is not None)
    for entry in index.entries(span):
        document = next(documents, None)
        if document is None or (entry.flags & KEPT and text_hash(document)[0] != entry.text_hash):
            raise changed
        yield document, entry.flags
    if next(documents, None) is not None:
        raise changed


def _training_text(sources: Sequence[Source], index: Index) -> TrainingText:
    """The documents that have the flag TOKENIZER."""
    digest, documents = hashlib.sha256(), 0
    for positions, records in index.chunks():
        chosen = records[(index.flags[positions] & TOKENIZER) > 0]
        digest.update(chosen["text_high"].tobytes() + chosen["text_low"].tobytes())
        documents += len(chosen)

    def read() -> Iterator[bytes]:
        for source, span in zip(sources, index.spans, strict=True):
            yield from (document.text for document, flags in _reread(source, index, span) if flags & TOKENIZER)

    return TrainingText(documents, digest.hexdigest(), read)


class _Second:
    """The second pass: every document that is kept, tokenized and counted."""

    def __init__(
        self,
        sources: Sequence[Source],
        index: Index,
        config: DataConfig,
        tokenizer: Tokenizer,
        serialized: str,
        directory: Path,
    ):
        self._sources, self._index, self._config = sources, index, config
        self._tokenizer, self._serialized = tokenizer, serialized
        self._total, present = 0, set()
        for positions, records in index.chunks():
            present.update(records["domain"][(index.flags[positions] & KEPT) > 0].tolist())
            self._total += int(records["length"].sum())
        self._domains = sorted(index.domains[domain] for domain in present)
        names = [f"train_{i}" for i in range(len(sources))] + [f"heldout_{j}" for j in range(len(self._domains))]
        dtype = compact_dtype(tokenizer.vocab_size)
        end, prompts = tokenizer.end_of_document, bool(config.prompt_field)
        self._writers = {name: ShardWriter(directory, name, dtype, end, prompts) for name in names}
        self._counter = ByteCounter(directory / "work", len(self._domains))
        self._documents = self._texts = 0  # that are trained on or held out, and those of them that are text
        self._bytes = {heldout: [0] * len(self._domains) for heldout in (False, True)}
        self._text_bytes = self._token_bytes = 0  # of text, and what its tokens are said to stand for
        self._directory = directory

    def run(self) -> dict[str, Any]:
        """Writes the parts, and returns what is to be known of them."""
        name = self._config.tokenizer.partition(":")[0]
        workers = self._config.workers
        with (
            progress("Tokenizing", self._total) as advance,
            encoder(name, self._serialized, self._total, workers) as encode,
        ):
            # Source by source, since a part of the held-out text may hold texts of one and ids of the next.
            for i in range(len(self._sources)):
                prompt = None
                for (part, size), ids in encode(self._items(i, advance)):
                    if part is None:  # its text comes next
                        prompt = ids
                        continue
                    self._text_bytes += size
                    self._token_bytes += int(self._tokenizer.bytes_per_token[ids].sum())
                    self._token_bytes += int(self._tokenizer.bytes_per_token[self._tokenizer.end_of_document])
                    if prompt is None:
                        self._writers[part.name].add(ids, part.domain)
                    else:
                        self._writers[part.name].add(np.concatenate([prompt, ids]), part.domain, len(prompt))
                        prompt = None
        digests = [writer.finish() for writer in self._writers.values()]
        counted = self._counter.finish()
        np.savez(self._directory / "byte_counts.npz", **dataclasses.asdict(counted))
        by_domain = {heldout: dict(zip(self._domains, sizes, strict=True)) for heldout, sizes in self._bytes.items()}
        counts = {"documents": self._documents, "train_bytes": by_domain[False], "heldout_bytes": by_domain[True]}
        exactness = self._token_bytes / self._text_bytes if self._text_bytes else 1.0
        if abs(exactness - 1) > INEXACT:
            logging.warning(
                "data.tokenizer=%r: its tokens stand for %.2f%% of the bytes of the text, so bits per byte are "
                "approximate",
                self._config.tokenizer,
                100 * exactness,
            )
        return {
            "domains": self._domains,
            "sources": len(self._sources),
            "digests": digests,
            "all_text": self._texts == self._documents,
            "counts": counts,
        }

    def _items(self, i: int, advance: Callable[[int], None]) -> Iterator[Item]:
        """The texts of source i, in order. Documents that are ids already are written at once."""
        domain_of = {name: number for number, name in enumerate(self._domains)}
        for document, flags in _reread(self._sources[i], self._index, self._index.spans[i]):
            advance(len(document.text))
            if flags & (HELDOUT | TRAIN):
                domain = domain_of[document.domain]
                heldout = bool(flags & HELDOUT)
                yield from self._take(document, Part(f"heldout_{domain}" if heldout else f"train_{i}", domain, heldout))

    def _take(self, document: Document, part: Part) -> Iterator[Item]:
        self._documents += 1
        self._bytes[part.heldout][part.domain] += len(document.text)
        if document.ids is not None:
            ids = document.ids.astype(compact_dtype(self._tokenizer.vocab_size))
            size = self._tokenizer.bytes_per_token[ids].sum()
            self._bytes[part.heldout][part.domain] += int(size)
            self._writers[part.name].add(ids, part.domain)
            return
        self._texts += 1
        if part.heldout:
            self._counter.add_heldout(document.text, part.domain)
        else:
            self._counter.add_train(document.text)
        if document.prompt:
            yield Item((None, 0), document.prompt)
        yield Item((part, len(document.text)), document.text)
