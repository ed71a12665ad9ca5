"""Plans worked by hand. Choices are numbered t * K + k, slots e * C + c."""

import jax.numpy as jnp
import numpy as np
import pytest

from moe_jax.moe.plan import DROP_ORDERS, make_plan
from moe_jax.moe.routing import Routing


def routing_of(expert, top_probability, num_experts, valid=None) -> Routing:
    expert = jnp.asarray([expert], jnp.int32)
    probability = jnp.zeros((*expert.shape[:2], num_experts)).at[..., 0].set(jnp.asarray(top_probability))
    valid = jnp.ones(expert.shape[:2], bool) if valid is None else jnp.asarray([valid])
    wanted = jnp.broadcast_to(valid[..., None], expert.shape)
    return Routing(expert, jnp.ones(expert.shape), wanted, valid, probability, probability)


# Four tokens, two choices each, three experts of two slots. Expert 0 is asked for by choices 0 (t0, first), 3 (t1,
# second), 4 (t2, first) and 6 (t3, first); expert 1 by 1, 2 and 7; expert 2 by 5.
EXPERTS = [[0, 1], [1, 0], [0, 2], [0, 1]]
PROBABILITIES = [0.4, 0.5, 0.6, 0.9]


@pytest.mark.parametrize(
    ("order", "in_slot"),
    [
        ("position", [0, 3, 1, 2, 5, 8]),  # in the order of tokens
        ("choice", [0, 4, 2, 1, 5, 8]),  # t2's first choice before t1's second
        ("priority", [6, 4, 2, 7, 5, 8]),  # first choices of t3, t2, t1, t0, then their second ones
    ],
)
def test_who_gets_a_slot(order, in_slot):
    plan = make_plan(routing_of(EXPERTS, PROBABILITIES, 3), 2, order)
    np.testing.assert_array_equal(plan.choice_in_slot[0], in_slot)
    slot_of = [in_slot.index(choice) if choice in in_slot else 6 for choice in range(8)]
    np.testing.assert_array_equal(plan.slot_of_choice[0], np.reshape(slot_of, (4, 2)))
    np.testing.assert_array_equal(plan.kept()[0], np.reshape(slot_of, (4, 2)) < 6)


def test_priority_goes_by_the_first_choice_not_by_the_most_probable_expert():
    """A balance bias may have moved the choice of the first token from expert 1."""
    routing = routing_of([[0], [0]], [0.1, 0.6], 2)
    routing = routing._replace(probabilities=jnp.array([[[0.1, 0.9], [0.6, 0.4]]]))
    np.testing.assert_array_equal(make_plan(routing, 1, "priority").choice_in_slot[0], [1, 2])


def test_all_tokens_to_one_expert():
    plan = make_plan(routing_of([[1]] * 5, [0.5] * 5, 2), 2, "position")
    np.testing.assert_array_equal(plan.choice_in_slot[0], [5, 5, 0, 1])
    np.testing.assert_array_equal(plan.kept()[0, :, 0], [True, True, False, False, False])


def test_padding_tokens_do_not_stand_in_the_queue():
    plan = make_plan(routing_of([[0]] * 4, [0.5] * 4, 1, valid=[False, True, False, True]), 2, "position")
    np.testing.assert_array_equal(plan.choice_in_slot[0], [1, 3])
    np.testing.assert_array_equal(plan.slot_of_choice[0, :, 0], [2, 0, 2, 1])


@pytest.mark.parametrize("order", DROP_ORDERS)
def test_kept_choices_and_filled_slots_are_one_to_one(order):
    rng = np.random.default_rng(0)
    tokens, experts, k, capacity = 57, 7, 3, 11
    chosen = np.stack([rng.permutation(experts)[:k] for _ in range(tokens)])
    plan = make_plan(routing_of(chosen, rng.random(tokens), experts), capacity, order)
    slots = np.asarray(plan.slot_of_choice[0]).reshape(-1)
    for choice, slot in enumerate(slots):
        if slot < experts * capacity:
            assert plan.choice_in_slot[0, slot] == choice
            assert slot // capacity == chosen.reshape(-1)[choice]
    load = np.bincount(chosen.reshape(-1), minlength=experts)
    filled = np.sum(np.asarray(plan.choice_in_slot[0]).reshape(experts, capacity) < tokens * k, axis=1)
    np.testing.assert_array_equal(filled, np.minimum(load, capacity))
    assert np.sum(slots < experts * capacity) == filled.sum()
