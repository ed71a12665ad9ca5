"""The task of predicting the next token of text."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from moe_jax.config.schema import RunConfig
from moe_jax.data.baselines import gzip_bits_per_byte, unigram_bits_per_byte
from moe_jax.data.corpus import Corpus, load_corpus
from moe_jax.data.mixture import epochs
from moe_jax.data.pipeline import Batch, TrainBatches, heldout_batches, train_iterator
from moe_jax.models.decoder import Decoder
from moe_jax.moe.sums import Sums
from moe_jax.tasks.task import Scores

# Of the same text: so many are about as good as fresh text (Muennighoff et al. 2023, arXiv 2305.16264).
MANY_EPOCHS = 4.0


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
        scored: Any = jax.ShapeDtypeStruct((size, length), np.bool_)
        return Batch(ids=tokens, targets=tokens, documents=tokens, scored=scored, domain=sequences)

    def count_targets(self, batch: Batch) -> Int[Array, ""]:
        """See `Task.count_targets`."""
        return jnp.sum(batch.scored)

    def train_loss(
        self, model: Decoder, batch: Batch, step: Int[Array, ""], key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[Sums, ...]]:
        """See `Task.train_loss`."""
        ids, targets, documents, scored = map(jnp.asarray, batch[:4])
        nll, sums = model.negative_log_likelihood(ids, targets, documents, scored, step, key, train=True)
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
        """See `Dataset.train_batches`; logs how often each source will be gone through."""
        planned = self.epochs(self.run.train.steps)
        listed = ", ".join(f"{source} {times:.2f}" for source, times in planned.items())
        logging.info("Epochs in %d steps: %s", self.run.train.steps, listed)
        many = {source: times for source, times in planned.items() if times > MANY_EPOCHS and self.run.data.weights}
        for source, times in many.items():
            logging.warning(
                "data.weights=%s repeat data.source=%r %.1f times in %d steps: lower its weight, or give more text",
                *(self.run.data.weights, source, times, self.run.train.steps),
            )
        return train_iterator(self.corpus, self.run.data, self.run.seed, process_index, process_count)

    def heldout_batches(self, batches: int, process_index: int = 0, process_count: int = 1) -> Iterator[Batch]:
        """See `Dataset.heldout_batches`."""
        return heldout_batches(self.corpus, self.run.data.batch_size, batches, process_index, process_count)

    def epochs(self, steps: int) -> dict[str, float]:
        """See `Dataset.epochs`."""
        sizes = list(map(len, self.corpus.train_rows))
        times = epochs(sizes, self.run.data.weights, steps * self.run.data.batch_size)
        return dict(zip(self.corpus.sources, times, strict=True))

    def eval_sums(self, model: Decoder, batch: Batch, step: Int[Array, ""]) -> tuple[TextSums, tuple[Sums, ...]]:
        """See `Dataset.eval_sums`: negative log-likelihood without noise, at the capacity factor of evaluation."""
        ids, targets, documents, scored = map(jnp.asarray, batch[:4])
        nll, routing = model.negative_log_likelihood(ids, targets, documents, scored, step, None, train=False)
        in_domain = jax.nn.one_hot(batch.domain, len(self.corpus.domains), dtype=nll.dtype)
        by_domain = lambda per_sequence: jnp.sum(per_sequence[:, None] * in_domain, axis=0)
        bytes_per_token = jnp.asarray(self.corpus.tokenizer.bytes_per_token)
        text_bytes = jnp.sum(bytes_per_token[targets] * scored, axis=-1)
        return TextSums(by_domain(nll), by_domain(jnp.sum(scored, axis=-1)), by_domain(text_bytes)), routing

    def scores(self, sums: TextSums) -> Scores:
        """See `Dataset.scores`: nats a token, and bits a byte of text, which compare between tokenizers.

        Bits a byte are NaN where it is not known how many bytes the tokens stand for.
        """
        if not sums.tokens.sum():
            remedy = (
                "raise data.holdout_fraction"
                if not self.run.data.prompt_field
                else ("raise data.holdout_fraction, eval.batches, or data.sequence_length, which prompts may fill")
            )
            raise ValueError(f"there is no held-out text to evaluate on: {remedy}")
        known = self.corpus.knows_bytes
        bits = lambda nats, text: float(nats / math.log(2) / max(text, 1)) if known else math.nan
        present = [(name, i) for i, name in enumerate(self.corpus.domains) if sums.tokens[i]]
        loss, bits_per_byte = float(sums.nats.sum() / sums.tokens.sum()), bits(sums.nats.sum(), sums.bytes.sum())
        return Scores(
            overall={"loss": loss, "bits_per_byte": bits_per_byte},
            by_domain={
                "loss": {name: float(sums.nats[i] / sums.tokens[i]) for name, i in present},
                "bits_per_byte": {name: bits(sums.nats[i], sums.bytes[i]) for name, i in present},
            },
            counted={"tokens": int(sums.tokens.sum())},
            summary=f"held-out loss {loss:.4f}" + (f", {bits_per_byte:.4f} bits per byte" if known else ""),
        )

    def baselines(self) -> Mapping[str, Mapping[str, Any]]:
        """See `Dataset.baselines`; there are none where sources were tokenized elsewhere, since they need the text."""
        if not self.corpus.all_text:
            return {}
        unigram, gzip = unigram_bits_per_byte(self.corpus), gzip_bits_per_byte(self.corpus)
        return {"baselines_bits_per_byte": {"unigram": unigram, "gzip": gzip}}

    def table(self, scores: Scores) -> str:
        """Bits per byte of the model, of a byte unigram fitted to the training text, and of gzip, by domain.

        Where sources were tokenized elsewhere: the model's loss in nats a token, and its bits per byte if known.
        """
        if not self.corpus.all_text:
            return self._table_of_ids(scores)
        lines = [f"{'bits per byte':>16}{'model':>9}{'unigram':>9}{'gzip -9':>9}{'bytes':>12}"]
        rows: list[tuple[str, float, str | None]] = [("all", scores.overall["bits_per_byte"], None)]
        rows += [(name, bits, name) for name, bits in scores.by_domain["bits_per_byte"].items()]
        for name, bits, domain in rows:
            text = self.corpus.counts.heldout_bytes
            size = sum(text.values()) if domain is None else text[domain]
            unigram, gzip = unigram_bits_per_byte(self.corpus, domain), gzip_bits_per_byte(self.corpus, domain)
            lines.append(f"{name:>16}{bits:>9.3f}{unigram:>9.3f}{gzip:>9.3f}{size:>12,}")
        return "\n".join(lines)

    def _table_of_ids(self, scores: Scores) -> str:
        lines = [f"{'held-out':>16}{'nats a token':>15}{'bits per byte':>15}"]
        rows = {"all": scores.overall} | {
            name: {"loss": loss, "bits_per_byte": scores.by_domain["bits_per_byte"][name]}
            for name, loss in scores.by_domain["loss"].items()
        }
        for name, row in rows.items():
            bits = "-" if math.isnan(row["bits_per_byte"]) else f"{row['bits_per_byte']:.3f}"
            lines.append(f"{name:>16}{row['loss']:>15.3f}{bits:>15}")
        return "\n".join(lines)
