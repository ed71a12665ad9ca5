import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from moe_jax.data import Batch, heldout_batches
from moe_jax.models.decoder import Text
from moe_jax.moe.stats import RoutingSums
from moe_jax.train.evaluation import evaluate
from moe_jax.train.state import Variables
from moe_jax.train.step import EvalSums

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
        return decoder.hidden(Text(batch.inputs, batch.segments, jnp.int32(0)), None, train=False)[0]

    specs = (setup.model.specs, PartitionSpec())
    over_mesh = jax.jit(jax.shard_map(hidden, mesh=setup.mesh, in_specs=specs, out_specs=PartitionSpec()))
    logits = np.asarray(over_mesh(params, batch), np.float64) @ np.asarray(params["head"], np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    nats = -np.take_along_axis(log_p, batch.targets[..., None], axis=-1)[..., 0]
    return np.sum(nats * (batch.segments > 0), axis=-1)


def test_equals_the_loss_from_full_logits_by_domain(evaluated):
    setup, variables, evaluation = evaluated
    nats, tokens = np.zeros(2), np.zeros(2)
    for batch in heldout_batches(setup.corpus, setup.run.data.batch_size):
        np.add.at(nats, batch.domain, nats_by_row(setup, variables.params, batch))
        np.add.at(tokens, batch.domain, (batch.segments > 0).sum(axis=-1))
    assert setup.corpus.domains == ("numbers", "prose")
    np.testing.assert_allclose(evaluation.loss, nats.sum() / tokens.sum(), rtol=1e-5)
    by_domain = dict(zip(setup.corpus.domains, nats / tokens, strict=True))
    assert evaluation.loss_by_domain == pytest.approx(by_domain, rel=1e-5)

    text = setup.corpus.counts.heldout_bytes
    bits = {name: nats[i] / math.log(2) / text[name] for i, name in enumerate(setup.corpus.domains)}
    assert evaluation.bits_per_byte_by_domain == pytest.approx(bits, rel=1e-5)
    assert evaluation.bits_per_byte == pytest.approx(nats.sum() / math.log(2) / sum(text.values()), rel=1e-5)


def test_every_token_counts_once(evaluated):
    setup, _, evaluation = evaluated
    documents = 4  # a fifth of each domain's ten; each ends with a token of its own
    assert evaluation.tokens == sum(setup.corpus.counts.heldout_bytes.values()) + documents
    assert evaluation.tokens % (setup.run.data.batch_size * setup.run.data.sequence_length)  # the last batch is padded


def test_names_in_the_metrics(evaluated):
    _, _, evaluation = evaluated
    assert evaluation.as_metrics() == {
        "eval/loss": evaluation.loss,
        "eval/bits_per_byte": evaluation.bits_per_byte,
        "eval/dropped": evaluation.dropped_fraction,
        "eval/loss_numbers": evaluation.loss_by_domain["numbers"],
        "eval/loss_prose": evaluation.loss_by_domain["prose"],
        "eval/bits_per_byte_numbers": evaluation.bits_per_byte_by_domain["numbers"],
        "eval/bits_per_byte_prose": evaluation.bits_per_byte_by_domain["prose"],
    }
    assert 0 < evaluation.dropped_fraction < 1  # untrained routing, a capacity of twice the mean


def test_the_batch_size_does_not_matter_to_a_dense_model(set_up_once):
    results = []
    for size in (8, 5):
        setup, state = set_up_once(DENSE | {"data.batch_size": size})
        results.append(setup.evaluate(setup.compile_eval_step(), state.variables, batches=0))
    one, other = results
    assert one.tokens == other.tokens
    assert one.loss == pytest.approx(other.loss, rel=1e-6)
    assert one.loss_by_domain == pytest.approx(other.loss_by_domain, rel=1e-6)
    assert one.bits_per_byte == pytest.approx(other.bits_per_byte, rel=1e-6)


def test_the_first_batches_only(evaluated):
    setup, variables, whole = evaluated
    seen = []

    def count(params, batch):
        seen.append(int((batch.segments > 0).sum()))
        return sums([1.0, 1.0], [1.0, 1.0], [1.0, 1.0])

    setup.evaluate(count, variables, batches=2)
    assert len(seen) == 2 and sum(seen) < whole.tokens


def sums(nats, tokens, text):
    return EvalSums(*(np.array(x, np.float32) for x in (nats, tokens, text)), routing=None)


def evaluate_sums(results, domains):
    """`evaluate` where the evaluation step returns each of `results` in turn."""
    empty = np.zeros((1, 1), np.int32)
    batches = [Batch(empty, empty, empty, np.array([i], np.int32)) for i in range(len(results))]
    return evaluate(lambda variables, batch: results[batch.domain[0]], NOTHING, batches, domains)


def test_by_hand():
    """A domain with longer tokens has fewer bits a byte at the same loss; one without text is left out."""
    results = [sums([4.0, 0, 6.0], [4, 0, 3], [4, 0, 12]), sums([2.0, 0, 0], [2, 0, 0], [2, 0, 0])]
    evaluation = evaluate_sums(results, ("a", "b", "c"))
    bit = math.log(2)
    assert evaluation.tokens == 9
    assert evaluation.loss == pytest.approx(12 / 9)
    assert evaluation.bits_per_byte == pytest.approx(12 / bit / 18)
    assert evaluation.loss_by_domain == pytest.approx({"a": 6 / 6, "c": 6 / 3})
    assert evaluation.bits_per_byte_by_domain == pytest.approx({"a": 6 / bit / 6, "c": 6 / bit / 12})
    assert evaluation.dropped_fraction == 0


def test_small_batches_do_not_vanish_in_a_large_sum():
    """Sums over batches are in float64: 2**24 + 1 is not a float32."""
    results = [sums([2.0**24], [2**24], [2**24]), *[sums([1.0], [1], [1])] * 3]
    assert evaluate_sums(results, ("a",)).tokens == 2**24 + 3


@pytest.mark.parametrize("results", [[], [sums([0.0], [0], [0])]], ids=["no batch", "padding"])
def test_nothing_to_evaluate_on(results):
    with pytest.raises(ValueError, match="there is no held-out text to evaluate on: raise data"):
        evaluate_sums(results, ("a",))


def test_evaluation_has_its_own_capacity(set_up_once):
    """A slot for every token in evaluation, and for at most a quarter of them in training."""
    setup, state = set_up_once({"model.num_layers": 2, "moe.capacity_factor": 0.25, "moe.eval_capacity_factor": 4.0})
    evaluation = setup.evaluate(setup.compile_eval_step(), state.variables, batches=1)
    assert evaluation.dropped_fraction == 0
    batch = setup.place(next(iter(heldout_batches(setup.corpus, setup.run.data.batch_size))))
    _, metrics = setup.compile_train_step()(state, batch)
    assert metrics.routing.dropped.shape == (2,)
    assert np.all(np.asarray(metrics.routing.dropped) >= 0.75)


def test_the_dropped_fraction_is_a_mean_over_layers():
    def routing(dropped):
        shapes = {name: () for name in ("tokens", "squared_logsumexp", "entropy", "passed_through")}
        shapes |= {name: (4,) for name in ("assigned", "probability", "importance")}
        shapes |= {
            f"{what}_by_{by[0]}": by[1:] for what in ("wanted", "dropped") for by in (("rank", 1), ("position", 8))
        }
        shapes |= {"probability_histogram": (20,)}
        zeros = RoutingSums(**{name: jnp.zeros((2, *shape)) for name, shape in shapes.items()}, smooth_load=None)
        return (zeros._replace(wanted_by_rank=jnp.full((2, 1), 8.0), dropped_by_rank=jnp.array(dropped)[:, None]),)

    results = [sums([1.0], [1], [1])._replace(routing=routing(dropped)) for dropped in ([8.0, 1.0], [4.0, 1.0])]
    assert evaluate_sums(results, ("a",)).dropped_fraction == pytest.approx((12 / 16 + 2 / 16) / 2)
