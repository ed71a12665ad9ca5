"""A byte-level BPE that is trained on the training split."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from absl import logging
from jaxtyping import Int32, Integer
from tokenizers import decoders, models, pre_tokenizers, trainers

from moe_jax.config.schema import DataConfig
from moe_jax.data.cache import cache_key, cached
from moe_jax.data.tokenizers.tokenizer import TrainingText, chunks, compact_dtype

LONGEST_WORD = 1000  # characters; merging the pairs of a word takes time that grows with the square of its length
# Letters, digits, spaces, and whatever else: a word of the BPE is at most one run of them and the space before it.
LONG_RUN = re.compile(
    r"[^\W\d_]{%d,}|\d{%d,}|\s{%d,}|(?:[^\w\s]|_){%d,}" % ((LONGEST_WORD,) * 4)  # noqa: UP031, braces
)


class BPETokenizer:
    """Byte-level byte-pair encoding (Sennrich et al. 2016, over bytes as in GPT-2): any text, lossless."""

    def __init__(self, serialized: str):
        """Opens what `train` returned."""
        self._bpe = tokenizers.Tokenizer.from_str(serialized)
        # This is none of the BPE's own special tokens, which would be recognised where a document spells them.
        self.end_of_document = self._bpe.get_vocab_size()
        self.vocab_size = self.end_of_document + 1
        # The byte-level alphabet has one character for each byte.
        self.bytes_per_token = np.zeros(self.vocab_size, np.int32)
        for token, i in self._bpe.get_vocab().items():
            self.bytes_per_token[i] = len(token)

    @staticmethod
    def train(texts: Iterable[bytes], vocab_size: int) -> str:
        """Trains a BPE and returns it serialized.

        Its tokens and the end of document are at most `vocab_size` ids, and fewer if the text is short. The result
        depends on the texts alone, not on the number of threads. Runs of more than `LONGEST_WORD` letters, digits,
        spaces or other characters are cut, so that the time is linear in the text.
        """
        bpe = tokenizers.Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 1,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        bpe.train_from_iterator((part for text in texts for part in _cut(text.decode())), trainer)
        return bpe.to_str()

    def encode(self, text: str) -> Int32[np.ndarray, " tokens"]:
        """Ids of a text."""
        return np.array(self._bpe.encode(text).ids, np.int32)

    def encode_batch(self, texts: Sequence[bytes]) -> Iterator[Integer[np.ndarray, " tokens"]]:
        """Ids of each text; all cores encode."""
        dtype = compact_dtype(self.vocab_size)
        for chunk in chunks(texts):
            for encoding in self._bpe.encode_batch_fast([text.decode() for text in chunk]):
                yield np.array(encoding.ids, dtype)

    def decode(self, ids: Integer[np.ndarray, " tokens"]) -> str:
        """The text of `ids`."""
        ids = np.asarray(ids)
        return self._bpe.decode(ids[ids < self.end_of_document].tolist())


def _cut(text: str) -> Iterator[str]:
    """The text in parts, cut only within long runs."""
    start = 0
    for run in LONG_RUN.finditer(text):
        for end in range(run.start() + LONGEST_WORD, run.end(), LONGEST_WORD):
            yield text[start:end]
            start = end
    yield text[start:]


def build_bpe(texts: TrainingText, vocab_size: int, cache_dir: Path) -> str:
    """The result of `BPETokenizer.train`, from `cache_dir` if it was trained on the same texts before."""
    directory = cache_dir / "bpe" / cache_key(tokenizers.__version__, texts.digest, vocab_size)

    def build(draft: Path) -> None:
        logging.info("Training a BPE of %d tokens on %d documents", vocab_size, texts.documents)
        (draft / "tokenizer.json").write_text(BPETokenizer.train(texts.read(), vocab_size), encoding="utf-8")

    return cached(directory, "the BPE", build, lambda entry: (entry / "tokenizer.json").read_text(encoding="utf-8"))


def trained_bpe(texts: TrainingText, config: DataConfig, vocab_size: int, cache_dir: Path) -> str:
    """`build_bpe` for the registry of tokenizers."""
    return build_bpe(texts, vocab_size, cache_dir)
