"""Balancing losses against their papers' equations as loops in NumPy, values and gradients, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.config import MoEConfig
from moe_jax.moe.balance import auxiliary_losses, balance_loss, cv_squared, sequence_balance, weighted
from moe_jax.moe.plan import make_plan
from moe_jax.moe.router import Routing
from moe_jax.moe.stats import routing_sums

G, T, E, K = 3, 8, 4, 2


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def draw(seed=0):
    """Logits of three groups of eight tokens, and which tokens are valid: all of group 1, none of the first four."""
    rng = np.random.default_rng(seed)
    valid = rng.random((G, T)) > 0.3
    valid[1], valid[0, :4] = True, False
    return rng.normal(size=(G, T, E)), valid


def route(logits, valid) -> Routing:
    """The K best by logits, their probabilities as gates; a smooth load that is a function of each logit."""
    probabilities = jax.nn.softmax(logits)
    expert = jax.lax.top_k(jax.lax.stop_gradient(logits), K)[1]
    gate = jnp.take_along_axis(probabilities, expert, axis=-1)
    wanted = jnp.broadcast_to(jnp.asarray(valid)[..., None], expert.shape)
    return Routing(expert, gate, wanted, jnp.asarray(valid), probabilities, logits, jax.nn.sigmoid(2 * logits))


def sums_of(logits, valid):
    routing = route(logits, valid)
    return routing_sums(routing, make_plan(routing, 1, "position"))


def softmax(row):
    e = np.exp(row - row.max())
    return e / e.sum()


def best(row):
    return sorted(range(E), key=lambda e: (-row[e], e))[:K]


def balance(rows, counts_of=None):
    """E * sum_e f_e P_e of the tokens with these logits; f over `counts_of` where that is given."""
    f, P = np.zeros(E), np.zeros(E)
    for row in rows:
        P += softmax(row) / len(rows)
    counted = rows if counts_of is None else counts_of
    for row in counted:
        for e in best(row):
            f[e] += 1 / (K * len(counted))
    return E * float(f @ P)


def sequence_oracle(logits, valid, sequences):
    """DeepSeek-V3, equations 17 to 20, but for alpha: the mean over the sequences that have valid tokens."""
    rows, valid = logits.reshape(sequences, -1, E), valid.reshape(sequences, -1)
    return np.mean([balance(rows[b][valid[b]]) for b in range(sequences) if valid[b].any()])


def importance_oracle(logits, valid):
    """Shazeer et al. 2017, equations 6 and 7, but for the weight."""
    importance = np.zeros(E)
    for row in logits[valid]:
        for e in best(row):
            importance[e] += softmax(row)[e]
    return (np.std(importance) / np.mean(importance)) ** 2


def load_oracle(logits, valid):
    """Equations 10 and 11, with a logistic function for the probability."""
    load = sum(1 / (1 + np.exp(-2 * row)) for row in logits[valid])
    return (np.std(load) / np.mean(load)) ** 2


def slopes(oracle, logits):
    """Central differences; no draw is so near a tie that they change a choice."""
    gradient = np.zeros_like(logits)
    for index in np.ndindex(*logits.shape):
        step = np.zeros_like(logits)
        step[index] = 1e-6
        gradient[index] = (oracle(logits + step) - oracle(logits - step)) / 2e-6
    return gradient


def check(loss, oracle, logits):
    value, gradient = jax.value_and_grad(loss)(jnp.asarray(logits))
    np.testing.assert_allclose(value, oracle(logits), rtol=1e-12)
    expected = slopes(oracle, logits)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-9)
    assert np.max(np.abs(expected)) > 1e-3


@pytest.mark.parametrize("sequences", [2, 3, 6])
def test_sequence_balance(sequences):
    """Sequences of 12, 8 and 4 tokens in groups of 8: cut, whole, and several in a group; of six the first is empty.

    A balance bias has moved all choices: f counts the most probable experts all the same (equation 18).
    """
    logits, valid = draw()

    def loss(logits):
        routing = route(logits, valid)
        total, number = sequence_balance(routing._replace(expert=(routing.expert + 1) % E), sequences)
        return total / number

    assert sequence_balance(route(jnp.asarray(logits), valid), sequences)[1] == (5 if sequences == 6 else sequences)
    check(loss, lambda logits: sequence_oracle(logits, valid, sequences), logits)


def test_sequence_balance_by_hand():
    """Two sequences that choose one expert each, both surely: 2 a sequence, where the whole batch is balanced."""
    logits = jnp.array([[[30.0, 0], [30, 0]], [[0, 30], [0, 30]]])
    probabilities = jax.nn.softmax(logits)
    expert = jnp.argmax(logits, axis=-1, keepdims=True)
    valid = jnp.ones((2, 2), bool)
    routing = Routing(expert, jnp.ones(expert.shape), valid[..., None], valid, probabilities, logits)
    total, number = sequence_balance(routing, 2)
    np.testing.assert_allclose([total, number], [4, 2], rtol=1e-9)
    np.testing.assert_allclose(balance_loss(routing_sums(routing, make_plan(routing, 2, "position"))), 1, rtol=1e-9)


def test_padding_alone_has_no_sequence_and_no_loss():
    logits, valid = draw()
    total, number = sequence_balance(route(jnp.asarray(logits), np.zeros_like(valid)), 3)
    assert total == number == 0


def test_global_batch_counts_the_loads_of_earlier_micro_batches():
    logits, valid = draw()
    earlier, earlier_valid = draw(1)
    before = sums_of(jnp.asarray(earlier), earlier_valid).assigned
    loads_of = lambda logits: np.concatenate([earlier[earlier_valid], logits[valid]])
    oracle = lambda logits: balance(logits[valid], loads_of(logits))
    check(lambda logits: balance_loss(sums_of(logits, valid), before), oracle, logits)
    assert abs(oracle(logits) - balance(logits[valid])) > 1e-3


def test_importance_and_load_losses():
    logits, valid = draw()
    for name, oracle in (("importance", importance_oracle), ("load", load_oracle)):
        moe = MoEConfig(num_experts=E, importance_loss=1.0, load_loss=1.0)

        def loss(logits, name=name, moe=moe):
            sums = jax.tree.map(lambda s: s[None], sums_of(logits, valid))
            return getattr(auxiliary_losses(moe, [sums]), name)

        check(loss, lambda logits, oracle=oracle: oracle(logits, valid), logits)


def test_importance_counts_no_choice_that_the_router_lets_go():
    logits, valid = draw()
    routing = route(jnp.asarray(logits), valid)
    first_only = routing._replace(wanted=routing.wanted.at[..., 1].set(False))
    importance = np.zeros(E)
    for row in logits[valid]:
        importance[best(row)[0]] += softmax(row).max()
    sums = routing_sums(first_only, make_plan(first_only, 1, "position"))
    np.testing.assert_allclose(sums.importance, importance, rtol=1e-12)


def test_coefficient_of_variation_by_hand():
    # Mean 3, deviations -2, -1, 0, 3: variance 14 / 4.
    np.testing.assert_allclose(cv_squared(jnp.array([[1.0, 2, 3, 6], [5, 5, 5, 5]])), [14 / 4 / 9, 0], rtol=1e-12)
    value, gradient = jax.value_and_grad(lambda x: cv_squared(x))(jnp.zeros(4))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("scope", ["micro_batch", "sequence", "global_batch"])
def test_layers_add_up_and_each_loss_has_its_weight(scope):
    """Two parts, of one layer and of two; the layers of other parts may have other numbers of experts."""
    moe = MoEConfig(
        num_experts=E, balance_scope=scope, balance_loss=0.5, z_loss=0.25, importance_loss=0.125, load_loss=2.0
    )
    parts, expected = [], np.zeros(4)
    for layers in ((0,), (1, 2)):
        stacked = []
        for seed in layers:
            logits, valid = draw(seed)
            routing = route(jnp.asarray(logits), valid)
            total, number = sequence_balance(routing, 3)
            sums = routing_sums(routing, make_plan(routing, 1, "position"))
            stacked.append(sums._replace(sequence_balance=total, sequences=number))
            own = sequence_oracle(logits, valid, 3) if scope == "sequence" else balance(logits[valid])
            log_z = np.log(np.exp(logits[valid]).sum(-1))
            expected += [own, (log_z**2).mean(), importance_oracle(logits, valid), load_oracle(logits, valid)]
        parts.append(jax.tree.map(lambda *sums: jnp.stack(sums), *stacked))
    before = [jnp.zeros_like(part.assigned) for part in parts]
    losses = auxiliary_losses(moe, parts, before)
    np.testing.assert_allclose(losses, expected, rtol=1e-12)
    np.testing.assert_allclose(weighted(moe, losses), expected @ [0.5, 0.25, 0.125, 2.0], rtol=1e-12)


def test_losses_of_no_weight_are_not_there():
    losses = auxiliary_losses(
        MoEConfig(num_experts=E), [jax.tree.map(lambda s: s[None], sums_of(*map(jnp.asarray, draw())))]
    )
    assert losses.importance is None and losses.load is None
