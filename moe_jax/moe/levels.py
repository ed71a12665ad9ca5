"""The exchanges that rows go through on a mesh, and how many rows each has room for."""

import functools
import math
from fractions import Fraction

from moe_jax.config.capacity import expected_excess
from moe_jax.config.schema import MoEConfig
from moe_jax.moe.delivery import Level
from moe_jax.moe.routers import num_ranks

GATHERING = ("auto", "all_gather")  # the values of `moe.exchange` that, for dropless, gather all tokens on all devices


def levels_of(moe: MoEConfig, devices: int, tokens: int, slots: int = 0) -> list[Level]:
    """The exchanges of `tokens` tokens a device over an axis `expert` of so many devices; none over one device.

    Addresses are the experts, or where an expert has `slots` slots for the tokens of a device, the slots.
    """
    if devices == 1:
        return []
    per_expert = slots * devices or 1
    nodes = moe.exchange_nodes if moe.exchange_nodes > 1 else devices
    experts = moe.num_experts // nodes
    bound = level_rows(moe, nodes, tokens, slots)
    sends = tokens * (min(num_ranks(moe), nodes) if moe.exchange_unique else num_ranks(moe))
    first = Level(
        devices=nodes,
        addresses=experts * per_expert,
        entries=min(num_ranks(moe), experts) if moe.exchange_unique else 1,
        unique=moe.exchange_unique,
        rows=bound,
        peers=_across(nodes, devices) if nodes < devices else None,
        sends=sends if moe.exchange == "ragged" else 0,
    )
    if nodes == devices:
        return [first]
    inside, local = devices // nodes, moe.num_experts // devices
    rows = nodes * bound
    second = Level(
        devices=inside,
        addresses=local * per_expert,
        entries=min(first.entries, local),
        unique=True,
        rows=min(rows, nodes * local * slots) if slots else rows,
        peers=_inside(nodes, devices),
    )
    return [first, second]


def level_rows(moe: MoEConfig, devices: int, tokens: int, slots: int = 0) -> int:
    """R, the rows that a device may send to one of `devices` others; with `moe.exchange='ragged'`, that a device may
    receive from all.
    """
    senders = devices if moe.exchange == "ragged" else 1
    most = senders * most_rows(moe, devices, tokens, slots)
    if not moe.exchange_bound:
        return most
    return min(most, math.ceil(senders * Fraction(str(moe.exchange_bound)) * balanced_rows(moe, devices, tokens)))


def most_rows(moe: MoEConfig, devices: int, tokens: int, slots: int = 0) -> int:
    """The most rows that one device can have for one of `devices` others."""
    experts = moe.num_experts // devices
    rows = tokens if moe.exchange_unique else tokens * min(num_ranks(moe), experts)
    return min(rows, experts * slots) if slots else rows


def balanced_rows(moe: MoEConfig, devices: int, tokens: int) -> Fraction:
    """The rows that one device has for one of `devices` others on average, where each token's K experts are a uniform
    draw without replacement.
    """
    if not moe.exchange_unique:
        return Fraction(tokens * num_ranks(moe), devices)
    choices = num_ranks(moe)
    elsewhere = moe.num_experts - moe.num_experts // devices
    return tokens * (1 - Fraction(math.comb(elsewhere, choices), math.comb(moe.num_experts, choices)))


def in_words(moe: MoEConfig, devices: int, tokens: int, row_bytes: int, slots: int = 0) -> str:
    """The exchange of a layer: the rows that arrive at most, their memory, and what may drop for want of them."""
    local = moe.num_experts // devices
    if moe.exchange in GATHERING and not slots:
        most = devices * tokens * min(num_ranks(moe), local)
        return (
            f"exchange: all_gather, a device gets the {devices * tokens:,} tokens of all devices and has room for "
            f"{most:,} choices of its experts ({most * row_bytes / 1e6:,.1f} MB): nothing drops"
        )
    first = levels_of(moe, devices, tokens, slots)[0]
    rows = first.rows if first.sends else first.devices * first.rows
    said = f"exchange: a device has room for {rows:,} rows of others' ({rows * row_bytes / 1e6:,.1f} MB)"
    senders = first.devices if first.sends else 1
    most = senders * most_rows(moe, first.devices, tokens, slots)
    if first.rows >= most:
        return f"{said}, as many as can come"
    balanced = senders * balanced_rows(moe, first.devices, tokens)
    trials = senders * tokens * (1 if moe.exchange_unique else num_ranks(moe))
    dropped = expected_excess(trials, float(balanced / trials), first.rows) / float(balanced)
    return (
        f"{said}, {moe.exchange_bound} times the balanced load: uniform random routing would drop {dropped:.2%} of "
        f"them, and the most skewed {1 - first.rows / most:.0%}; who loses depends on the mesh"
    )


@functools.cache
def _across(nodes: int, devices: int) -> tuple[tuple[int, ...], ...]:
    """Places on the axis that have the same place in their nodes."""
    inside = devices // nodes
    return tuple(tuple(range(place, devices, inside)) for place in range(inside))


@functools.cache
def _inside(nodes: int, devices: int) -> tuple[tuple[int, ...], ...]:
    """Places on the axis that are on the same node."""
    inside = devices // nodes
    return tuple(tuple(range(node * inside, (node + 1) * inside)) for node in range(nodes))
