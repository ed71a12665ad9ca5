"""Text whose ids were made elsewhere, and how often a source is gone through."""

import json
import math

import numpy as np
import pytest

from moe_jax.tasks.registry import task_of
from moe_jax.tasks.text import TextSums
from moe_jax.train.loop import train


@pytest.fixture
def ids(tmp_path, make_run):
    """make(fields): a tiny run on two files of ids below 50, of which 49 ends a document."""
    draw = np.random.RandomState(0)
    for name in ("a", "b"):
        draw.randint(0, 50, 3000).astype(np.uint16).tofile(tmp_path / f"{name}.bin")
    own = {
        **{"data.source": f"tokens:{tmp_path}/*.bin", "data.cache_dir": str(tmp_path / "cache")},
        **{"data.tokenizer": "ids", "data.ids_vocab_size": 50, "data.end_of_document": "49", "model.vocab_size": 50},
    }
    return lambda fields: make_run({**own, **fields})


def test_scores_without_bytes(ids):
    data = task_of(ids({})).open()
    assert data.baselines() == {}
    assert data.corpus.domains == ("a", "b")
    scores = data.scores(TextSums(np.array([6.0, 2.0]), np.array([3.0, 2.0]), np.zeros(2)))
    assert scores.overall["loss"] == pytest.approx(8 / 5)
    assert math.isnan(scores.overall["bits_per_byte"])
    assert scores.summary == "held-out loss 1.6000"
    assert [line.split() for line in data.table(scores).splitlines()][1:] == [
        ["all", "1.600", "-"],
        ["a", "2.000", "-"],
        ["b", "1.000", "-"],
    ]


@pytest.mark.slow
def test_a_run_on_ids(ids, tmp_path):
    assert train(ids({"train.steps": 2}), tmp_path / "run") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["eval_bits_per_byte"] is None
    assert summary["eval_loss"] == pytest.approx(math.log(50), abs=1.0)
    ((source, epochs),) = summary["epochs_by_source"].items()
    assert source == f"tokens:{tmp_path}/*.bin" and 0 < epochs < 1


def test_many_epochs_are_said(ids, tmp_path, caplog):
    source = f"tokens:{tmp_path}/a.bin,tokens:{tmp_path}/b.bin"
    data = task_of(ids({"data.source": source, "data.weights": (9.0, 1.0), "train.steps": 100})).open()
    first, second = data.epochs(100).values()
    assert first > 4 > second
    data.train_batches()
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert f"repeat data.source='tokens:{tmp_path}/a.bin' {first:.1f} times in 100 steps: lower its weight" in warning
