import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from moe_jax.data.pipeline import Batch, heldout_batches
from moe_jax.tasks.text import TextSums
from moe_jax.train.evaluation import evaluate
from moe_jax.train.state import Variables

NOTHING = Variables(jnp.int32(0), {}, {})
DENSE = {"moe.num_experts": 0}


@pytest.fixture(scope="module")
def evaluated(set_up_once):
    """(setup, variables, the evaluation of an MoE model on all held-out text)."""
    setup, state = set_up_once()
    return setup, state.variables, setup.evaluate(setup.compile_eval_step(), state.variables, batches=0)


def nats_by_row(setup, params, batch):
    """[B]: the loss of each sequence from full logits, in NumPy and float64 after the last layer."""

    def hidden(params, batch):
        decoder = nnx.merge(setup.model.graphdef, params)
        return decoder.hidden(batch.ids, batch.documents, jnp.int32(0), None, train=False)[0]

    specs = (setup.model.specs, PartitionSpec())
    over_mesh = jax.jit(jax.shard_map(hidden, mesh=setup.mesh, in_specs=specs, out_specs=PartitionSpec()))
    logits = np.asarray(over_mesh(params, batch), np.float64) @ np.asarray(params["head"], np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    nats = -np.take_along_axis(log_p, batch.targets[..., None], axis=-1)[..., 0]
    return np.sum(nats * (batch.documents > 0), axis=-1)


def test_equals_the_loss_from_full_logits_by_domain(evaluated):
    setup, variables, evaluation = evaluated
    corpus, overall, by_domain = setup.data.corpus, evaluation.scores.overall, evaluation.scores.by_domain
    nats, tokens = np.zeros(2), np.zeros(2)
    for batch in heldout_batches(setup.data.corpus, setup.run.data.batch_size):
        np.add.at(nats, batch.domain, nats_by_row(setup, variables.params, batch))
        np.add.at(tokens, batch.domain, (batch.documents > 0).sum(axis=-1))
    assert corpus.domains == ("numbers", "prose")
    np.testing.assert_allclose(overall["loss"], nats.sum() / tokens.sum(), rtol=1e-5)
    assert evaluation.loss == overall["loss"]
    assert by_domain["loss"] == pytest.approx(dict(zip(corpus.domains, nats / tokens, strict=True)), rel=1e-5)

    text = corpus.counts.heldout_bytes
    bits = {name: nats[i] / math.log(2) / text[name] for i, name in enumerate(corpus.domains)}
    assert by_domain["bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    assert overall["bits_per_byte"] == pytest.approx(nats.sum() / math.log(2) / sum(text.values()), rel=1e-5)


def test_every_token_counts_once(evaluated):
    setup, _, evaluation = evaluated
    documents = 4  # a fifth of each domain's ten; each ends with a token of its own
    tokens = evaluation.scores.counted["tokens"]
    assert tokens == sum(setup.data.corpus.counts.heldout_bytes.values()) + documents
    assert tokens % (setup.run.data.batch_size * setup.run.data.sequence_length)  # the last batch is padded


def test_names_in_the_metrics_in_the_results_and_in_eval_json(evaluated):
    _, _, evaluation = evaluated
    scores, dropped = evaluation.scores, evaluation.dropped_fraction
    loss, bits = scores.by_domain["loss"], scores.by_domain["bits_per_byte"]
    assert evaluation.as_metrics() == {
        "eval/loss": evaluation.loss,
        "eval/bits_per_byte": scores.overall["bits_per_byte"],
        "eval/dropped_fraction": dropped,
        "eval/loss_numbers": loss["numbers"],
        "eval/loss_prose": loss["prose"],
        "eval/bits_per_byte_numbers": bits["numbers"],
        "eval/bits_per_byte_prose": bits["prose"],
    }
    assert evaluation.as_results() == {
        "eval_loss": evaluation.loss,
        "eval_bits_per_byte": scores.overall["bits_per_byte"],
        "eval_loss_by_domain": loss,
        "eval_bits_per_byte_by_domain": bits,
    }
    assert evaluation.as_dict() == {
        **scores.overall,
        "loss_by_domain": loss,
        "bits_per_byte_by_domain": bits,
        "tokens": scores.counted["tokens"],
        "dropped_fraction": dropped,
    }
    assert 0 < evaluation.dropped_fraction < 1  # untrained routing, a capacity of twice the mean


def test_the_batch_size_does_not_matter_to_a_dense_model(set_up_once):
    results = []
    for size in (8, 5):
        setup, state = set_up_once(DENSE | {"data.batch_size": size})
        results.append(setup.evaluate(setup.compile_eval_step(), state.variables, batches=0))
    one, other = results
    assert one.scores.counted == other.scores.counted
    assert one.scores.overall == pytest.approx(other.scores.overall, rel=1e-6)
    assert one.scores.by_domain["loss"] == pytest.approx(other.scores.by_domain["loss"], rel=1e-6)


def test_the_first_batches_only(evaluated):
    setup, variables, whole = evaluated
    seen = []

    def count(params, batch):
        seen.append(int((batch.documents > 0).sum()))
        return sums([1.0, 1.0], [1.0, 1.0], [1.0, 1.0])

    setup.evaluate(count, variables, batches=2)
    assert len(seen) == 2 and sum(seen) < whole.scores.counted["tokens"]


def sums(nats, tokens, text, routing=()):
    return TextSums(*(np.array(x, np.float32) for x in (nats, tokens, text))), routing


def evaluate_sums(data, results, domains):
    """`evaluate` where the evaluation step returns each of `results` in turn, and the data has these domains."""
    data = dataclasses.replace(data, corpus=dataclasses.replace(data.corpus, domains=domains))
    empty = np.zeros((1, 1), np.int32)
    batches = [Batch(empty, empty, empty, empty > 0, np.array([i], np.int32)) for i in range(len(results))]
    return evaluate(lambda variables, batch: results[batch.domain[0]], NOTHING, batches, data)


def test_by_hand(evaluated):
    """A domain with longer tokens has fewer bits a byte at the same loss; one without text is left out."""
    results = [sums([4.0, 0, 6.0], [4, 0, 3], [4, 0, 12]), sums([2.0, 0, 0], [2, 0, 0], [2, 0, 0])]
    evaluation = evaluate_sums(evaluated[0].data, results, ("a", "b", "c"))
    bit, scores = math.log(2), evaluation.scores
    assert scores.counted == {"tokens": 9}
    assert scores.overall == pytest.approx({"loss": 12 / 9, "bits_per_byte": 12 / bit / 18})
    assert scores.by_domain["loss"] == pytest.approx({"a": 6 / 6, "c": 6 / 3})
    assert scores.by_domain["bits_per_byte"] == pytest.approx({"a": 6 / bit / 6, "c": 6 / bit / 12})
    assert scores.summary == "held-out loss 1.3333, 0.9618 bits per byte"
    assert evaluation.dropped_fraction == 0


def test_small_batches_do_not_vanish_in_a_large_sum(evaluated):
    """Sums over batches are in float64: 2**24 + 1 is not a float32."""
    results = [sums([2.0**24], [2**24], [2**24]), *[sums([1.0], [1], [1])] * 3]
    assert evaluate_sums(evaluated[0].data, results, ("a",)).scores.counted == {"tokens": 2**24 + 3}


@pytest.mark.parametrize(
    ("results", "what"), [([], "data"), ([sums([0.0], [0], [0])], "text")], ids=["none", "padding"]
)
def test_nothing_to_evaluate_on(evaluated, results, what):
    with pytest.raises(ValueError, match=f"there is no held-out {what} to evaluate on: raise data"):
        evaluate_sums(evaluated[0].data, results, ("a",))


def test_evaluation_has_its_own_capacity(set_up_once):
    """A slot for every token in evaluation, and for at most a quarter of them in training."""
    setup, state = set_up_once({"model.num_layers": 2, "moe.capacity_factor": 0.25, "moe.eval_capacity_factor": 4.0})
    evaluation = setup.evaluate(setup.compile_eval_step(), state.variables, batches=1)
    assert evaluation.dropped_fraction == 0
    batch = setup.place(next(iter(heldout_batches(setup.data.corpus, setup.run.data.batch_size))))
    _, metrics = setup.compile_train_step()(state, batch)
    (stats,) = metrics.routing
    assert stats["dropped_fraction"].shape == (2,)
    assert np.all(np.asarray(stats["dropped_fraction"]) >= 0.75)


def test_the_dropped_fraction_is_a_mean_over_layers(evaluated):
    """Of two layers alike in one segment, and of a third of two choices a token in another."""

    def routing(first, second):
        two = {"wanted_by_rank": np.full((2, 1), 8.0), "dropped_by_rank": np.array(first)[:, None]}
        one = {"wanted_by_rank": np.full((1, 2), 4.0), "dropped_by_rank": np.array([second])}
        return two, one

    parts = [routing([8.0, 1.0], [0.0, 4.0]), routing([4.0, 1.0], [0.0, 2.0])]
    results = [sums([1.0], [1], [1], part) for part in parts]
    evaluation = evaluate_sums(evaluated[0].data, results, ("a",))
    assert evaluation.dropped_fraction == pytest.approx((12 / 16 + 2 / 16 + 6 / 16) / 3)
