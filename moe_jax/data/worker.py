"""A process that encodes texts: `python -m moe_jax.data.worker`, started by `encoding.py`. It does not import JAX.

It reads pickles from its standard input, first the name of the tokenizer and its serialized form, then lists of texts,
and answers each list on its standard output: the lengths and the ids of all texts, one after another.
"""

import pickle
import sys

import numpy as np

from moe_jax.data.tokenizers import TOKENIZERS


def main() -> None:
    """Answers until the input ends."""
    name, serialized = pickle.load(sys.stdin.buffer)
    tokenizer = TOKENIZERS[name].open(serialized)
    while True:
        try:
            texts = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        ids = list(tokenizer.encode_batch(texts))
        pickle.dump((list(map(len, ids)), np.concatenate(ids)), sys.stdout.buffer, protocol=5)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
