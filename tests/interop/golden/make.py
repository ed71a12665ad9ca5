"""Writes the fixtures of this folder: small random checkpoints and their logits, a folder for each family.

python tests/interop/golden/make.py    (needs torch and transformers, see `make test-peers`)
"""

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "helpers"))

from hugging_face import BASE, FAMILIES, float64_logits, make_model  # noqa: E402, from the folder above


def main():
    ids = np.random.RandomState(0).randint(0, BASE["vocab_size"], (2, 33))
    for family in FAMILIES:
        model = make_model(family)
        folder = HERE / family
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        np.savez_compressed(folder / "logits.npz", ids=ids, logits=float64_logits(model, ids))
        print(family, sum(path.stat().st_size for path in folder.iterdir()), "bytes")


if __name__ == "__main__":
    main()
