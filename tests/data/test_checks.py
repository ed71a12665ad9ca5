"""Every condition of section `data`, broken once."""

import dataclasses
import re

import pytest

from moe_jax.config.rules import ConfigError
from moe_jax.config.schema import DataConfig, RunConfig
from moe_jax.data.checks import check


def run_of(**fields):
    return dataclasses.replace(RunConfig(), data=dataclasses.replace(DataConfig(), **fields))


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe", "hf:tokenizer.json"])
def test_possible(tokenizer):
    check(run_of(tokenizer=tokenizer, source="stdlib,text:a", weights=(1.0, 0.5), max_bytes=1, holdout_fraction=0.5))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sequence_length": 0}, "data.sequence_length=0 must be positive: give at least 1"),
        ({"batch_size": -1}, "data.batch_size=-1 must be positive: give at least 1"),
        ({"max_bytes": -1}, "data.max_bytes=-1 is negative: give 0 or more"),
        ({"tokenizer": "words"}, "data.tokenizer='words' is unknown: choose one of bytes, bpe, hf:FILE, ids"),
        ({"holdout_fraction": 0.0}, "data.holdout_fraction=0.0 is outside (0, 1): 0.05 holds out one file in 20"),
        ({"source": "text"}, "data.source='text' is not a source: use stdlib, text:FOLDER_OR_GLOB, jsonl:FILE_OR_GLOB"),
        ({"source": "pypi:django"}, "data.source='pypi:django' names no release: pin one"),
        ({"weights": (1.0, 2.0)}, "data.weights=(1.0, 2.0) has 2 entries for 1 sources: give one each, or () to mix"),
        ({"source": "text:/caf\udce9"}, "data.source='text:/caf\\xe9' is not UTF-8: name the folder above it"),
        ({"workers": -1}, "data.workers=-1 is negative"),
        ({"tokenizer": "hf:"}, "data.tokenizer='hf:' names no file: write hf:FILE"),
        ({"end_of_document": "x"}, "data.end_of_document='x' with data.tokenizer='bytes', which has its own"),
        ({"weights": (0.0,)}, "data.weights=(0.0,) has an entry that is not positive: leave that source out"),
        ({"weights": (float("nan"),)}, "data.weights=(nan,) has an entry that is not positive"),
    ],
    ids=str,
)
def test_impossible(fields, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        check(run_of(**fields))
