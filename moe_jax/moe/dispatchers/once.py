"""Slots that are filled on the device of their experts: a token crosses the mesh once to each device, not once a slot.

The sender's plan says which choice has which slot, so that what is dropped, and every result, is that of `capacity`.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from moe_jax.config.schema import MoEConfig
from moe_jax.moe.context import Context
from moe_jax.moe.delivery import Beside, deliver
from moe_jax.moe.dropout import hidden_mask, token_noise
from moe_jax.moe.feed_forward import Experts, Weights
from moe_jax.moe.levels import levels_of
from moe_jax.moe.places import Places
from moe_jax.moe.plan import Plan
from moe_jax.moe.routing import Routing
from moe_jax.parallel.collectives import index_over, varying
from moe_jax.parallel.mesh import EXPERT, TENSOR


def through_slots_there(
    x: Float[Array, "G T D"], routing: Routing, plan: Plan, experts: Experts, context: Context, moe: MoEConfig
) -> tuple[Float[Array, "G T D"], Bool[Array, "G T K"]]:
    """Each token's gated sum of its slots, and which choices were carried: those of the plan, as long as
    `moe.exchange_bound` has room for their rows.
    """
    devices = lax.axis_size(EXPERT)
    groups, tokens, size = x.shape
    capacity = plan.choice_in_slot.shape[-1] // moe.num_experts
    # Every expert has C slots for each group of the axis: address (e * all groups + group) * C + c.
    group = index_over([EXPERT]) * groups + jnp.arange(groups)[:, None, None]
    expert, place = plan.slot_of_choice // capacity, plan.slot_of_choice % capacity
    address = (expert * (devices * groups) + group) * capacity + place
    address = jnp.where(plan.kept(), address, moe.num_experts * devices * groups * capacity)
    beside = beside_tokens(address, routing, context, moe)
    weights = experts.gathered(x.dtype)
    receive = lambda rows, beside: _in_slots(rows, beside, devices * groups * capacity, experts, weights, context, moe)
    levels = levels_of(moe, devices, groups * tokens, groups * capacity)
    y, carried = deliver(x.reshape(-1, size), beside, levels, receive, moe.exchange_dtype or x.dtype)
    return y.reshape(x.shape), plan.kept() & carried.reshape(routing.wanted.shape)


def beside_tokens(address: Int[Array, "G T K"], routing: Routing, context: Context, moe: MoEConfig) -> Beside:
    """What goes with the tokens of all groups, one group behind another."""
    flat = lambda a: None if a is None else a.reshape(-1, a.shape[-1])
    noise = None
    if moe.expert_dropout and context.keys is not None:
        noise = token_noise(context.keys, address.shape[1])
    # Gates meet parts of sums over `tensor`: declared here, their gradients are summed where they are few.
    return Beside(
        address.reshape(-1, address.shape[-1]),
        flat(varying(routing.gate, [TENSOR])),
        flat(routing.input_gate),
        flat(noise),
    )


def _in_slots(
    rows: Float[Array, "N D"],
    beside: Beside,
    slots: int,
    experts: Experts,
    weights: Weights,
    context: Context,
    moe: MoEConfig,
) -> Float[Array, "N D"]:
    """Each row's sum over its slots, of which every expert here has so many."""
    local, _, hidden = weights.up.shape
    place = beside.address
    entry = jnp.full((local * slots,), place.size, jnp.int32)
    entry = entry.at[place.reshape(-1)].set(jnp.arange(place.size, dtype=jnp.int32), mode="drop")
    places, mask = Places(entry, place), None
    in_buffers = lambda a: a.reshape(1, local, slots, a.shape[-1])
    if (noise := places.noise(beside)) is not None:
        expert = index_over([EXPERT]) * local + jnp.arange(local)
        expert = jnp.broadcast_to(expert[:, None], (1, local, slots))
        mask = hidden_mask(in_buffers(noise), expert, moe.expert_dropout, hidden).astype(rows.dtype)
    out = experts(in_buffers(places.enter(rows, beside)), weights, mask)
    return places.leave(out.reshape(-1, rows.shape[-1]), beside)
