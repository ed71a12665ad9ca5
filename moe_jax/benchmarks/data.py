"""How fast data is read and tokenized: rows of the loader a second, and tokenizing over the library's own speed."""

import itertools
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers

from moe_jax.benchmarks.timing import Ratio, paired_ratio, turns
from moe_jax.config.schema import DataConfig
from moe_jax.data.corpus import load_corpus
from moe_jax.data.documents import as_utf8
from moe_jax.data.encoding import Item, encoder
from moe_jax.data.pipeline import train_iterator
from moe_jax.data.tokenizers import BPETokenizer

SHAPES = ((128, 64), (2048, 16))  # sequence length, sequences a batch
TOKENS = 1 << 22  # that are read in a turn
TEXT_BYTES = 1 << 24  # of the standard library that are tokenized in a turn
VOCABULARY = 8192


def run(repeats: int) -> list[dict[str, Any]]:
    """Runs and prints both tables."""
    return [*_reading(repeats), *_tokenizing(repeats)]


def _reading(repeats: int) -> list[dict[str, Any]]:
    """Tokens a second of the training iterator in this process, on bytes of the standard library."""
    print("| sequence length | batch | million tokens/s |\n|---|---|---|")
    rows = []
    for length, size in SHAPES:
        config = DataConfig(sequence_length=length, batch_size=size)
        batches = train_iterator(load_corpus(config, 257, seed=0), config, seed=0)
        next(batches)
        count, rates = max(TOKENS // (length * size), 1), []
        for _ in range(repeats):
            start = time.perf_counter()
            for _ in itertools.islice(batches, count):
                pass
            rates.append(count * length * size / (time.perf_counter() - start))
        rate = sorted(rates)[len(rates) // 2]
        print(f"| {length} | {size} | {rate / 1e6:.2f} |", flush=True)
        rows.append({"sequence_length": length, "batch_size": size, "tokens_per_second": rate})
    return rows


def _tokenizing(repeats: int) -> list[dict[str, Any]]:
    """Speed of encoding texts into arrays of ids, over that of the library's `encode_batch_fast` on the same texts."""
    texts = _texts()
    serialized = BPETokenizer.train(texts[:: len(texts) // 200 + 1], VOCABULARY)
    library = tokenizers.Tokenizer.from_str(serialized)
    total = sum(map(len, texts))
    with encoder("bpe", serialized, total) as encode:
        candidates: dict[str, Callable[[], Any]] = {
            "library": lambda: library.encode_batch_fast([text.decode() for text in texts]),
            "here": lambda: sum(len(ids) for _, ids in encode(Item(None, text) for text in texts)),
        }
        times: dict[str, list[float]] = {name: [] for name in candidates}
        for order in [list(candidates), *turns(candidates, repeats)]:
            for name in order:
                start = time.perf_counter()
                candidates[name]()
                times[name].append(time.perf_counter() - start)
    times = {name: seconds[1:] for name, seconds in times.items()}  # without the turn that warms up
    ratio: Ratio = paired_ratio(times, "library", "here")
    speed = total / sorted(times["here"])[repeats // 2]
    print(f"\n| tokenizing | MB/s | speed / tokenizers |\n|---|---|---|\n| BPE | {speed / 1e6:.1f} | {ratio} |")
    return [{"tokenizer": "bpe", "bytes_per_second": speed, "speed_over_library": ratio.median}]


def _texts() -> list[bytes]:
    """About `TEXT_BYTES` of the standard library's modules."""
    texts, total = [], 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        text = as_utf8(path.read_bytes())
        if text is not None and total < TEXT_BYTES:
            texts.append(text)
            total += len(text)
    return texts
