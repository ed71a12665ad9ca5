"""The expert capacity: its one meaning, and what it costs when routing is random."""

import functools
import math
from fractions import Fraction

from moe_jax.config.schema import MoEConfig


def capacity(factor: float, top_k: int, group_size: int, num_experts: int) -> int:
    """Slots C that each expert has for one group: min(T, ceil(factor * K * T / E)).

    Computed exactly, on the decimal number that was written: in floats 1.1 * 100 / 10 is rounded up to 12.
    """
    return min(group_size, math.ceil(nominal_capacity(factor, top_k, group_size, num_experts)))


def nominal_capacity(factor: float, top_k: int, group_size: int, num_experts: int) -> Fraction:
    """factor * K * T / E before rounding; below 1 most experts could not take a single token of a balanced load."""
    return Fraction(str(factor)) * top_k * group_size / num_experts


def effective_factor(slots: int, top_k: int, group_size: int, num_experts: int) -> float:
    """C * E / (K * T): the capacity factor after rounding."""
    return slots * num_experts / (top_k * group_size)


def factor_of(moe: MoEConfig, train: bool) -> float:
    """The capacity factor of a layer in training or in evaluation."""
    return moe.capacity_factor if train else moe.eval_capacity_factor


def capacity_of(moe: MoEConfig, train: bool) -> int:
    """C of a layer in training or in evaluation."""
    return capacity(factor_of(moe, train), moe.top_k, moe.group_size, moe.num_experts)


def expected_excess(trials: int, p: float, slots: int) -> float:
    """E[(X - slots)+] of a Binomial(trials, p), for 0 < p < 1."""
    log_p, log_q = math.log(p), math.log1p(-p)
    log_factorial = math.lgamma(trials + 1)
    excess = 0.0
    for load in range(slots + 1, trials + 1):
        ways = log_factorial - math.lgamma(load + 1) - math.lgamma(trials - load + 1)
        probability = math.exp(ways + load * log_p + (trials - load) * log_q)
        excess += (load - slots) * probability
        if load > trials * p and probability < 1e-30:
            break  # the rest of the tail is smaller still
    return excess


@functools.cache
def random_drop_fraction(slots: int, top_k: int, group_size: int, num_experts: int) -> float:
    """Expected fraction of choices dropped when each token's K experts are a uniform draw without replacement.

    An expert's load is then Binomial(T, K/E), so the fraction is E[(load - C)+] / (T K / E): the floor that a router
    which balances only on average cannot beat at this group size.
    """
    p = top_k / num_experts
    if p >= 1:
        return max(0.0, 1 - slots / group_size)
    return expected_excess(group_size, p, slots) / (group_size * p)
