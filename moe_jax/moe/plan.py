"""The plan: which slot of which expert's buffer each choice gets, and which choices are dropped.

Slot c of expert e has the number e * C + c; S = E * C. A choice is a token with a rank: number t * K + k.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from moe_jax.moe.routing import Routing, pick
from moe_jax.moe.ties import best_first


class Plan(NamedTuple):
    """A one-to-one map between kept choices and filled slots, written down from both sides."""

    slot_of_choice: Int[Array, "G T K"]  # S: the choice has no slot, since it was dropped or is not wanted
    choice_in_slot: Int[Array, "G S"]  # T * K: the slot is empty

    def kept(self) -> Bool[Array, "G T K"]:
        """Which choices have a slot."""
        return self.slot_of_choice < self.choice_in_slot.shape[-1]


def position_order(probability: Float[Array, "T"], k: int) -> Int[Array, "choices"]:
    """Token by token, a token's choices by rank. What a token gets depends on the tokens before it only: causal."""
    return jnp.arange(probability.shape[0] * k)


def choice_order(probability: Float[Array, "T"], k: int) -> Int[Array, "choices"]:
    """All first choices before all second ones (GShard). For K > 1 a later token's first choice can take the slot of an
    earlier token's second one: not causal.
    """
    return jnp.arange(probability.shape[0] * k).reshape(-1, k).T.reshape(-1)


def priority_order(probability: Float[Array, "T"], k: int) -> Int[Array, "choices"]:
    """All first choices before all second ones, within a rank the tokens with the most probable first choice first
    (batch prioritised routing, V-MoE, Riquelme et al. 2021, algorithm 2), of equal ones the earlier. Not causal.
    """
    by_probability = best_first(probability)
    return (by_probability[None, :] * k + jnp.arange(k)[:, None]).reshape(-1)


class DropOrder(NamedTuple):
    """A queue, and for which numbers of choices K what a token gets depends on no later token."""

    queue: Callable[[Float[Array, "T"], int], Int[Array, "choices"]]
    causal: Callable[[int], bool]


DROP_ORDERS: dict[str, DropOrder] = {
    "position": DropOrder(position_order, causal=lambda k: True),
    "choice": DropOrder(choice_order, causal=lambda k: k == 1),
    "priority": DropOrder(priority_order, causal=lambda k: False),
}


def make_plan(routing: Routing, capacity: int, drop_order: str, null_experts: int = 0) -> Plan:
    """Gives slots first come, first served, in the drop order; C = `capacity` slots for each expert and group.

    The last `null_experts` that the router chooses from have no slots.
    """
    num_experts = routing.probabilities.shape[-1] - null_experts
    order = DROP_ORDERS[drop_order].queue

    def plan_group(expert: Int[Array, "T K"], wanted: Bool[Array, "T K"], probability: Float[Array, "T"]):
        k = expert.shape[-1]
        slots, choices = num_experts * capacity, expert.size
        queue = order(probability, k).astype(jnp.int32)
        expert, wanted = expert.reshape(-1)[queue], wanted.reshape(-1)[queue]
        asks = jax.nn.one_hot(expert, num_experts, dtype=jnp.int32) * wanted[:, None]
        place = jnp.sum(jnp.cumsum(asks, axis=0) * asks, axis=-1) - 1  # in the expert's queue; -1: not wanted
        slot = jnp.where((place >= 0) & (place < capacity), expert * capacity + place, slots).astype(jnp.int32)
        choice_in_slot = jnp.full((slots,), choices, jnp.int32).at[slot].set(queue, mode="drop")
        slot_of_choice = jnp.zeros((choices,), jnp.int32).at[queue].set(slot, unique_indices=True)
        return Plan(slot_of_choice.reshape(-1, k), choice_in_slot)

    first = pick(routing.probabilities, routing.expert[..., :1])[..., 0]
    return jax.vmap(plan_group)(routing.expert, routing.wanted, first)
