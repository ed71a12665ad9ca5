"""The task of predicting the next token of text."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from moe_jax.config.schema import RunConfig
from moe_jax.data import (
    Batch,
    Corpus,
    TrainBatches,
    gzip_bits_per_byte,
    heldout_batches,
    load_corpus,
    train_iterator,
    unigram_bits_per_byte,
)
from moe_jax.models.decoder import Decoder
from moe_jax.moe.sums import Sums
from moe_jax.tasks.task import Scores


@dataclasses.dataclass(frozen=True)
class Text:
    """A decoder reads the ids of a row of text; its loss is the cross-entropy of the next ones, in nats a token."""

    run: RunConfig
    unit: ClassVar[str] = "token"

    @property
    def units_per_step(self) -> int:
        """Tokens of a global batch, padding included."""
        return self.run.data.batch_size * self.run.data.sequence_length

    def build(self, rngs: nnx.Rngs) -> Decoder:
        """See `Task.build`."""
        return Decoder(self.run, rngs)

    def batch_shapes(self) -> Batch:
        """See `Task.batch_shapes`."""
        size, length = self.run.data.batch_size, self.run.data.sequence_length
        tokens: Any = jax.ShapeDtypeStruct((size, length), np.int32)
        sequences: Any = jax.ShapeDtypeStruct((size,), np.int32)
        return Batch(ids=tokens, targets=tokens, documents=tokens, domain=sequences)

    def count_targets(self, batch: Batch) -> Int[Array, ""]:
        """See `Task.count_targets`."""
        return jnp.sum(batch.documents > 0)

    def train_loss(
        self, model: Decoder, batch: Batch, step: Int[Array, ""], key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[Sums, ...]]:
        """See `Task.train_loss`."""
        ids, targets, documents = map(jnp.asarray, (batch.ids, batch.targets, batch.documents))
        nll, sums = model.negative_log_likelihood(ids, targets, documents, step, key, train=True)
        return jnp.sum(nll), sums

    def open(self) -> "TextDataset":
        """See `Task.open`."""
        return TextDataset(self.run, load_corpus(self.run.data, self.run.model.vocab_size, self.run.seed))


class TextSums(NamedTuple):
    """Sums over the valid targets of an evaluation batch, by domain."""

    nats: Float[Array, "domains"]
    tokens: Float[Array, "domains"]
    bytes: Float[Array, "domains"]  # of text that the targets stand for


@dataclasses.dataclass(frozen=True)
class TextDataset:
    """A corpus of several domains."""

    run: RunConfig
    corpus: Corpus

    @property
    def sha256(self) -> str:
        """The hash of the tokens of both splits."""
        return self.corpus.sha256

    def train_batches(self, process_index: int = 0, process_count: int = 1) -> TrainBatches:
        """See `Dataset.train_batches`."""
        return train_iterator(self.corpus, self.run.data, self.run.seed, process_index, process_count)

    def heldout_batches(self, batches: int, process_index: int = 0, process_count: int = 1) -> Iterator[Batch]:
        """See `Dataset.heldout_batches`."""
        return heldout_batches(self.corpus, self.run.data.batch_size, batches, process_index, process_count)

    def eval_sums(self, model: Decoder, batch: Batch, step: Int[Array, ""]) -> tuple[TextSums, tuple[Sums, ...]]:
        """See `Dataset.eval_sums`: negative log-likelihood without noise, at the capacity factor of evaluation."""
        ids, targets, documents = map(jnp.asarray, (batch.ids, batch.targets, batch.documents))
        nll, routing = model.negative_log_likelihood(ids, targets, documents, step, None, train=False)
        valid = documents > 0
        in_domain = jax.nn.one_hot(batch.domain, len(self.corpus.domains), dtype=nll.dtype)
        by_domain = lambda per_sequence: jnp.sum(per_sequence[:, None] * in_domain, axis=0)
        bytes_per_token = jnp.asarray(self.corpus.tokenizer.bytes_per_token)
        text_bytes = jnp.sum(bytes_per_token[targets] * valid, axis=-1)
        return TextSums(by_domain(nll), by_domain(jnp.sum(valid, axis=-1)), by_domain(text_bytes)), routing

    def scores(self, sums: TextSums) -> Scores:
        """See `Dataset.scores`: nats a token, and bits a byte of text, which compare between tokenizers."""
        if not sums.tokens.sum():
            raise ValueError("there is no held-out text to evaluate on: raise data.holdout_fraction")
        bits = lambda nats, text: float(nats / math.log(2) / max(text, 1))
        present = [(name, i) for i, name in enumerate(self.corpus.domains) if sums.tokens[i]]
        loss, bits_per_byte = float(sums.nats.sum() / sums.tokens.sum()), bits(sums.nats.sum(), sums.bytes.sum())
        return Scores(
            overall={"loss": loss, "bits_per_byte": bits_per_byte},
            by_domain={
                "loss": {name: float(sums.nats[i] / sums.tokens[i]) for name, i in present},
                "bits_per_byte": {name: bits(sums.nats[i], sums.bytes[i]) for name, i in present},
            },
            counted={"tokens": int(sums.tokens.sum())},
            summary=f"held-out loss {loss:.4f}, {bits_per_byte:.4f} bits per byte",
        )

    def baselines(self) -> Mapping[str, Mapping[str, Any]]:
        """See `Dataset.baselines`."""
        unigram, gzip = unigram_bits_per_byte(self.corpus), gzip_bits_per_byte(self.corpus)
        return {"baselines_bits_per_byte": {"unigram": unigram, "gzip": gzip}}

    def table(self, scores: Scores) -> str:
        """Bits per byte of the model, of a byte unigram fitted to the training text, and of gzip, by domain."""
        lines = [f"{'bits per byte':>16}{'model':>9}{'unigram':>9}{'gzip -9':>9}{'bytes':>12}"]
        rows: list[tuple[str, float, str | None]] = [("all", scores.overall["bits_per_byte"], None)]
        rows += [(name, bits, name) for name, bits in scores.by_domain["bits_per_byte"].items()]
        for name, bits, domain in rows:
            text = self.corpus.counts.heldout_bytes
            size = sum(text.values()) if domain is None else text[domain]
            unigram, gzip = unigram_bits_per_byte(self.corpus, domain), gzip_bits_per_byte(self.corpus, domain)
            lines.append(f"{name:>16}{bits:>9.3f}{unigram:>9.3f}{gzip:>9.3f}{size:>12,}")
        return "\n".join(lines)
