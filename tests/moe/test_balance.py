import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.config import MoEConfig
from moe_jax.moe.losses import balance_loss, z_loss
from moe_jax.moe.measures import routing_stats
from moe_jax.moe.observe import observe
from moe_jax.moe.plan import make_plan
from moe_jax.moe.routing import Routing
from moe_jax.moe.sums import Sums


def observed(routing, capacity) -> Sums:
    moe = MoEConfig(num_experts=routing.logits.shape[-1], top_k=routing.expert.shape[-1])
    return observe(moe, routing, make_plan(routing, capacity, "position").kept(), 1)


def sums_of(logits, valid=None, capacity=4, k=1) -> Sums:
    """Sums of one group routed by `logits` [T, E] to its k best experts."""
    logits = jnp.asarray(logits, jnp.float32)[None]
    probabilities = jax.nn.softmax(logits)
    gate, expert = jax.lax.top_k(probabilities, k)
    valid = jnp.ones(logits.shape[:2], bool) if valid is None else jnp.asarray(valid)[None]
    wanted = jnp.broadcast_to(valid[..., None], expert.shape)
    routing = Routing(expert, gate, wanted, valid, probabilities, logits)
    return observed(routing, capacity)


LOG = np.log


def test_balance_loss_by_hand():
    # Probabilities (3/4, 1/4) three times and (1/4, 3/4) once: f = (3/4, 1/4), P = (5/8, 3/8).
    logits = [[LOG(3), 0]] * 3 + [[0, LOG(3)]]
    np.testing.assert_allclose(balance_loss(sums_of(logits)), 2 * (3 / 4 * 5 / 8 + 1 / 4 * 3 / 8), rtol=1e-6)


def test_balance_loss_is_one_when_uniform_and_the_number_of_experts_at_collapse():
    uniform = [[LOG(9), 0, 0], [0, LOG(9), 0], [0, 0, LOG(9)]]
    np.testing.assert_allclose(balance_loss(sums_of(uniform)), 1, rtol=1e-6)
    np.testing.assert_allclose(balance_loss(sums_of([[50.0, 0, 0]] * 4)), 3, rtol=1e-6)
    np.testing.assert_allclose(balance_loss(sums_of(uniform, k=2)), 1, rtol=1e-6)


def test_balance_loss_counts_choices_before_drops():
    assert sums_of([[5.0, 0]] * 4, capacity=1)["dropped_by_rank"].sum() == 3
    np.testing.assert_allclose(
        balance_loss(sums_of([[5.0, 0]] * 4, capacity=1)), balance_loss(sums_of([[5.0, 0]] * 4)), rtol=1e-6
    )


def test_z_loss_by_hand():
    # logsumexp = log 4 and log 2; the padding token does not count.
    logits = [[LOG(3), 0], [0, 0], [100.0, 0]]
    expected = (LOG(4) ** 2 + LOG(2) ** 2) / 2
    np.testing.assert_allclose(z_loss(sums_of(logits, [True, True, False])), expected, rtol=1e-6)


def test_losses_of_nothing_but_padding_are_zero_and_have_a_gradient():
    loss = lambda logits: balance_loss(sums_of(logits, [False] * 4)) + z_loss(sums_of(logits, [False] * 4))
    value, gradient = jax.value_and_grad(loss)(jnp.ones((4, 3)))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_statistics_by_hand():
    # Four tokens, two experts of two slots; token 3 is padding. Expert 0 gets tokens 0, 1, 2 and drops token 2.
    logits = [[LOG(3), 0]] * 4
    sums = sums_of(logits, [True, True, True, False], capacity=2)
    stats = routing_stats(jax.tree.map(lambda x: x[None], sums))
    np.testing.assert_allclose(stats["load"], [[2, 0]])
    np.testing.assert_allclose(stats["max_violation"], [1])
    np.testing.assert_allclose(stats["dropped_fraction"], [1 / 3])
    np.testing.assert_allclose(stats["dropped_fraction_rank"], [[1 / 3]])
    np.testing.assert_allclose(stats["passed_through"], [1 / 3])
    # Four tokens over eight bins: bin 2t holds token t.
    np.testing.assert_allclose(stats["dropped_fraction_position"], [[0, 0, 0, 0, 1, 0, 0, 0]])
    entropy = -(0.75 * LOG(0.75) + 0.25 * LOG(0.25))
    np.testing.assert_allclose(stats["router_entropy"], [entropy], rtol=1e-6)
    assert stats["probability"][0, 15] == 3  # probability 0.75, twenty bins
    assert stats["probability"].sum() == 3


def test_statistics_of_a_layer_without_choices_are_zero_not_nan():
    stats = routing_stats(jax.tree.map(jnp.zeros_like, jax.tree.map(lambda x: x[None], sums_of([[0.0, 1]] * 4))))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(stats))
    assert stats["dropped_fraction"][0] == 0


def test_the_dropped_fraction_is_of_choices_that_the_router_wants():
    """Four equal tokens, one slot an expert, a second choice wanted for the first token alone."""
    logits = jnp.log(jnp.array([[[0.72, 0.18, 0.1]] * 4]))
    expert, gate = jnp.array([[[0, 1]] * 4]), jnp.array([[[0.72, 0.18]] * 4])
    wanted = jnp.array([[[True, True], [True, False], [True, False], [True, False]]])
    routing = Routing(expert, gate, wanted, jnp.ones((1, 4), bool), jax.nn.softmax(logits), logits)
    sums = observed(routing, capacity=1)
    stats = routing_stats(jax.tree.map(lambda x: x[None], sums))
    np.testing.assert_array_equal(sums["choices"], [4, 4, 0])
    np.testing.assert_array_equal(sums["probability_counts"], 4 * (np.eye(20)[14] + np.eye(20)[3]))  # of all choices
    np.testing.assert_allclose(stats["dropped_fraction"], [3 / 5])
    np.testing.assert_allclose(stats["dropped_fraction_rank"], [[3 / 4, 0]])
    np.testing.assert_allclose(stats["dropped_fraction_position"], [[0, 0, 1, 0, 1, 0, 1, 0]])
