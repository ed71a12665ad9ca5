"""The exchanges that rows go through on a mesh, and how many rows each has room for."""

import functools
import math
from fractions import Fraction

from moe_jax.config.schema import MoEConfig
from moe_jax.moe.delivery import Level


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
    ragged = moe.exchange == "ragged"
    first = Level(
        devices=nodes,
        addresses=experts * per_expert,
        entries=min(moe.top_k, experts) if moe.exchange_unique else 1,
        unique=moe.exchange_unique,
        rows=bound,
        peers=_across(nodes, devices) if nodes < devices else None,
        ragged=ragged,
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
    rows = tokens if moe.exchange_unique else tokens * min(moe.top_k, experts)
    return min(rows, experts * slots) if slots else rows


def balanced_rows(moe: MoEConfig, devices: int, tokens: int) -> Fraction:
    """The rows that one device has for one of `devices` others on average, where each token's K experts are a uniform
    draw without replacement.
    """
    if not moe.exchange_unique:
        return Fraction(tokens * moe.top_k, devices)
    elsewhere = moe.num_experts - moe.num_experts // devices
    return tokens * (1 - Fraction(math.comb(elsewhere, moe.top_k), math.comb(moe.num_experts, moe.top_k)))


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
