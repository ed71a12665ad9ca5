"""Balancing losses against their papers' equations as loops in NumPy, values and gradients, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_differences import slopes
from softmax import softmax

from moe_jax.config import MoEConfig
from moe_jax.moe.losses import auxiliary_losses, balance_loss, cv_squared, sequence_balance, sequences, weighted
from moe_jax.moe.observe import observe
from moe_jax.moe.plan import make_plan
from moe_jax.moe.routing import Routing
from moe_jax.moe.sums import Observed

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
    smooth_load = jax.nn.sigmoid(2 * logits)
    return Routing(expert, gate, wanted, jnp.asarray(valid), probabilities, logits, smooth_load=smooth_load)


ALL_LOSSES = MoEConfig(router="noisy_top_k", num_experts=E, top_k=K, importance_loss=1.0, load_loss=1.0)


def sums_of_routing(routing, moe=ALL_LOSSES, rows=1):
    return observe(moe, routing, make_plan(routing, 1, "position").kept(), rows)


def sums_of(logits, valid):
    return sums_of_routing(route(logits, valid))


def sequence_sums(routing, rows):
    """The sum of the balance losses of `rows` sequences, and the number of those that count."""
    observed = Observed(routing, routing.wanted, rows)
    return sequence_balance(observed), sequences(observed)


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


def check(loss, oracle, logits):
    """No draw is so near a tie that the central differences change a choice."""
    value, gradient = jax.value_and_grad(loss)(jnp.asarray(logits))
    np.testing.assert_allclose(value, oracle(logits), rtol=1e-12)
    expected = slopes(oracle, logits)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-9)
    assert np.max(np.abs(expected)) > 1e-3


@pytest.mark.parametrize("rows", [2, 3, 6])
def test_sequence_balance(rows):
    """Sequences of 12, 8 and 4 tokens in groups of 8: cut, whole, and several in a group; of six the first is empty.

    A balance bias has moved all choices: f counts the most probable experts all the same (equation 18).
    """
    logits, valid = draw()

    def loss(logits):
        routing = route(logits, valid)
        total, number = sequence_sums(routing._replace(expert=(routing.expert + 1) % E), rows)
        return total / number

    assert sequence_sums(route(jnp.asarray(logits), valid), rows)[1] == (5 if rows == 6 else rows)
    check(loss, lambda logits: sequence_oracle(logits, valid, rows), logits)


def test_sequence_balance_by_hand():
    """Two sequences that choose one expert each, both surely: 2 a sequence, where the whole batch is balanced."""
    logits = jnp.array([[[30.0, 0], [30, 0]], [[0, 30], [0, 30]]])
    probabilities = jax.nn.softmax(logits)
    expert = jnp.argmax(logits, axis=-1, keepdims=True)
    valid = jnp.ones((2, 2), bool)
    routing = Routing(expert, jnp.ones(expert.shape), valid[..., None], valid, probabilities, logits)
    np.testing.assert_allclose(sequence_sums(routing, 2), [4, 2], rtol=1e-9)
    np.testing.assert_allclose(balance_loss(sums_of_routing(routing, MoEConfig(num_experts=2))), 1, rtol=1e-9)


def test_padding_alone_has_no_sequence_and_no_loss():
    logits, valid = draw()
    total, number = sequence_sums(route(jnp.asarray(logits), np.zeros_like(valid)), 3)
    assert total == number == 0


def test_global_batch_counts_the_loads_of_earlier_micro_batches():
    logits, valid = draw()
    earlier, earlier_valid = draw(1)
    before = sums_of(jnp.asarray(earlier), earlier_valid)["choices"]
    loads_of = lambda logits: np.concatenate([earlier[earlier_valid], logits[valid]])
    oracle = lambda logits: balance(logits[valid], loads_of(logits))
    check(lambda logits: balance_loss(sums_of(logits, valid), before), oracle, logits)
    assert abs(oracle(logits) - balance(logits[valid])) > 1e-3


def test_importance_and_load_losses():
    logits, valid = draw()
    for name, oracle in (("importance_loss", importance_oracle), ("load_loss", load_oracle)):

        def loss(logits, name=name):
            sums = jax.tree.map(lambda s: s[None], sums_of(logits, valid))
            return auxiliary_losses(ALL_LOSSES, [sums])[name]

        check(loss, lambda logits, oracle=oracle: oracle(logits, valid), logits)


def test_importance_counts_no_choice_that_the_router_lets_go():
    logits, valid = draw()
    routing = route(jnp.asarray(logits), valid)
    first_only = routing._replace(wanted=routing.wanted.at[..., 1].set(False))
    importance = np.zeros(E)
    for row in logits[valid]:
        importance[best(row)[0]] += softmax(row).max()
    np.testing.assert_allclose(sums_of_routing(first_only)["importance"], importance, rtol=1e-12)


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
        router="noisy_top_k", num_experts=E, top_k=K, balance_scope=scope, balance_loss=0.5, z_loss=0.25,
        importance_loss=0.125, load_loss=2.0,
    )  # fmt: skip
    parts, expected = [], np.zeros(4)
    for layers in ((0,), (1, 2)):
        stacked = []
        for seed in layers:
            logits, valid = draw(seed)
            stacked.append(sums_of_routing(route(jnp.asarray(logits), valid), moe, rows=3))
            own = sequence_oracle(logits, valid, 3) if scope == "sequence" else balance(logits[valid])
            log_z = np.log(np.exp(logits[valid]).sum(-1))
            expected += [own, (log_z**2).mean(), importance_oracle(logits, valid), load_oracle(logits, valid)]
        parts.append(jax.tree.map(lambda *sums: jnp.stack(sums), *stacked))
    before = [jnp.zeros_like(part["choices"]) for part in parts]
    losses = auxiliary_losses(moe, parts, before)
    assert list(losses) == ["balance_loss", "z_loss", "importance_loss", "load_loss"]
    np.testing.assert_allclose(list(losses.values()), expected, rtol=1e-12)
    np.testing.assert_allclose(weighted(moe, losses), expected @ [0.5, 0.25, 0.125, 2.0], rtol=1e-12)


def test_losses_of_no_weight_are_neither_there_nor_summed_for_unless_they_are_always_shown():
    moe = MoEConfig(num_experts=E, top_k=K, balance_loss=0.0, z_loss=0.0)
    sums = sums_of_routing(route(*map(jnp.asarray, draw())), moe)
    assert not {"importance", "smooth_load", "sequence_balance", "router_penalty"} & set(sums)
    assert set(auxiliary_losses(moe, [jax.tree.map(lambda s: s[None], sums)])) == {"balance_loss", "z_loss"}
