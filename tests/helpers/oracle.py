"""An MoE layer as loops over tokens and experts in NumPy, float64, forward and backward: to be checked by eye."""

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from softmax import softmax

from moe_jax.config import MoEConfig


class Result(NamedTuple):
    y: np.ndarray  # [G, T, D]
    slots: list[dict]  # by group: (token, rank) -> (expert, slot), dropped choices left out
    balance_loss: float
    z_loss: float
    assigned: np.ndarray  # [E]
    dropped: int
    gradients: dict[str, np.ndarray]  # of sum(y * dy) + balance_loss + z_loss


def choices(probability, moe: MoEConfig):
    """Experts by descending probability, ties to the lower index, and their gates."""
    experts = sorted(range(len(probability)), key=lambda e: (-probability[e], e))[: moe.top_k]
    gates = probability[experts]
    return experts, gates / gates.sum() if renormalizes(moe) else gates


def renormalizes(moe: MoEConfig):
    return moe.router == "gshard" or moe.normalize_gates


def queue(probabilities, moe: MoEConfig):
    """(token, rank) in the order in which they are served."""
    tokens, ranks = range(len(probabilities)), range(moe.top_k)
    if moe.drop_order == "position":
        return [(t, k) for t in tokens for k in ranks]
    if moe.drop_order == "priority":
        tokens = sorted(tokens, key=lambda t: -probabilities[t].max())
    return [(t, k) for k in ranks for t in tokens]


def moe_layer(x, valid, weights, moe: MoEConfig, dy) -> Result:
    """`weights`: router [D, E], up [E, D, F], down [E, F, D]; ReLU experts. `dy`: the gradient of y."""
    groups, tokens, _ = x.shape
    E, K = moe.num_experts, moe.top_k
    capacity = min(tokens, math.ceil(Fraction(str(moe.capacity_factor)) * K * tokens / E))
    router, up, down = (weights[name].astype(np.float64) for name in ("router", "up", "down"))
    x, dy = x.astype(np.float64), dy.astype(np.float64)
    logits = x @ router
    probability = np.array([[softmax(row) for row in group] for group in logits])
    y, d_probability = np.zeros_like(x), np.zeros_like(probability)
    gradients = {"x": np.zeros_like(x), "router": np.zeros_like(router), "up": 0 * up, "down": 0 * down}
    assigned, mean_probability, z_loss, dropped, slots = np.zeros(E), np.zeros(E), 0.0, 0, []

    for g in range(groups):
        used, taken = [0] * E, {}
        for t, k in queue(probability[g], moe):
            if not valid[g, t]:
                continue
            expert = choices(probability[g, t], moe)[0][k]
            assigned[expert] += 1
            if used[expert] < capacity:
                taken[t, k] = expert, used[expert]
                used[expert] += 1
            else:
                dropped += 1
        slots.append(taken)
        for t in range(tokens):
            experts, gates = choices(probability[g, t], moe)
            d_gates = np.zeros(K)
            for k, e in enumerate(experts):
                if (t, k) not in taken:
                    continue
                before = x[g, t] @ up[e]
                hidden = np.maximum(before, 0)
                out = hidden @ down[e]
                y[g, t] += gates[k] * out
                d_gates[k] = out @ dy[g, t]
                d_out = gates[k] * dy[g, t]
                d_before = (down[e] @ d_out) * (before > 0)
                gradients["down"][e] += np.outer(hidden, d_out)
                gradients["up"][e] += np.outer(x[g, t], d_before)
                gradients["x"][g, t] += up[e] @ d_before
            if renormalizes(moe):  # gate_k = p_k / sum(p)
                total = probability[g, t, experts].sum()
                d_gates = (d_gates - (d_gates * gates).sum()) / total
            d_probability[g, t, experts] += d_gates

    count = valid.sum()
    mean_probability = probability[valid].mean(axis=0)
    f = assigned / assigned.sum()
    balance_loss = E * (f * mean_probability).sum()
    d_probability[valid] += E * f / count
    log_z = np.log(np.exp(logits).sum(-1))
    z_loss = (log_z[valid] ** 2).mean()
    d_logits = probability * (d_probability - (d_probability * probability).sum(-1, keepdims=True))
    d_logits[valid] += (2 * log_z[valid] / count)[:, None] * probability[valid]
    gradients["router"] = np.einsum("gtd,gte->de", x, d_logits)
    gradients["x"] += d_logits @ router.T
    return Result(y, slots, balance_loss, z_loss, assigned, dropped, gradients)
