import dataclasses
import itertools

import grain
import numpy as np
import pytest

from moe_jax.config.rules import ConfigError
from moe_jax.config.schema import DataConfig
from moe_jax.data.corpus import load_corpus
from moe_jax.data.mixture import epochs, proportions, rows_drawn
from moe_jax.data.pipeline import train_iterator
from moe_jax.data.sources import check_sources


@pytest.fixture
def three(write, make_config):
    """Sources of one domain each, named after it."""
    for name, count in (("one", 5), ("two", 17), ("three", 40)):
        write({f"{i}": f"{name} {i} " * 9 for i in range(count)}, name)
    root = write({}, "")
    return make_config(",".join(f"text:{root}/{name}" for name in ("one", "two", "three")))


@pytest.mark.parametrize(
    "weights", [(), (1.0, 1.0, 1.0), (0.3, 5.0, 1.999), (1e300, 3e299, 1e300), (1e-310, 1e-310, 2e-310)]
)
@pytest.mark.parametrize("batches", [1, 7, 50])
def test_rows_of_each_source_are_counted_exactly(three, weights, batches):
    config = dataclasses.replace(three, weights=weights)
    corpus = load_corpus(config, 257, seed=0)
    assert corpus.domains == ("one", "three", "two")
    drawn = np.concatenate([b.domain for b in itertools.islice(train_iterator(corpus, config, 0), batches)])
    sizes = [len(rows) for rows in corpus.train_rows]
    expected = [(drawn == domain).sum() for domain in (0, 2, 1)]
    assert rows_drawn(sizes, weights, 4 * batches) == expected
    assert epochs(sizes, weights, 4 * batches) == [n / size for n, size in zip(expected, sizes, strict=True)]


@pytest.mark.parametrize("weights", [(1.0, 1.999), (0.3, 5.0, 1.999), (7.77, 1.0, 3.333)])
def test_many_rows_are_counted_as_grain_mixes_them(weights):
    """Grain rounds weights down to hundredths of the smallest, which shows after thousands of rows."""
    sizes = [10] * len(weights)
    sources = [grain.MapDataset.range(10 * i, 10 * i + 10).repeat() for i in range(len(weights))]
    mixed = grain.MapDataset.mix(sources, proportions(sizes, weights))
    drawn = np.bincount([mixed[row] // 10 for row in range(9_000)], minlength=len(weights))
    assert rows_drawn(sizes, weights, 9_000) == drawn.tolist()


def test_scaling_leaves_ratios():
    assert proportions([3, 5], ()) == (3.0, 5.0)
    assert proportions([3, 5], (3e300, 1e300))[0] / proportions([3, 5], (3e300, 1e300))[1] == 3e300 / 1e300


def test_one_source():
    assert epochs([10], (), 25) == [2.5]


@pytest.mark.parametrize("weights", [(1e300, 1e-300), (1.0, 1e-7), (5e-324, 1.0)])
def test_weights_too_far_apart(weights):
    config = DataConfig(source="stdlib,text:x", weights=weights)
    with pytest.raises(
        ConfigError, match=r"data\.weights=\(.*\): the largest is more than 1,000,000 times the smallest"
    ):
        check_sources(config)


@pytest.mark.parametrize("heldout", [5000, 11])
def test_little_is_left_to_train_on(write, make_config, caplog, heldout):
    sizes = {"1": 5011 - heldout, "2": heldout}  # by their names, the second is held out
    config = make_config(
        f"text:{write({f'd/{name}': 'x' * size for name, size in sizes.items()})}", sequence_length=128
    )
    for _ in ("cold", "warm"):
        caplog.clear()
        counts = load_corpus(config, 257, seed=0).counts
        assert (counts.train_bytes, counts.heldout_bytes) == ({"d": 5011 - heldout}, {"d": heldout})
        if heldout == 5000:
            assert "are 5000 bytes and leave 11 to train on, since some documents are far larger" in caplog.text
            assert "has less text to train on than one row of data.sequence_length=128" in caplog.text
        else:
            assert not caplog.records
