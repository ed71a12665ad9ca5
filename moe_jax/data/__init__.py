"""Text: sources -> documents -> split -> tokens -> rows -> batches."""

from moe_jax.data.baselines import gzip_bits_per_byte, unigram_bits_per_byte
from moe_jax.data.corpus import Corpus, Counts, load_corpus
from moe_jax.data.pipeline import Batch, TrainBatches, heldout_batches, train_iterator

__all__ = [
    "Batch",
    "Corpus",
    "Counts",
    "TrainBatches",
    "gzip_bits_per_byte",
    "heldout_batches",
    "load_corpus",
    "train_iterator",
    "unigram_bits_per_byte",
]
