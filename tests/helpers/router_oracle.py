"""Token-choice routers as loops over groups, tokens and experts in NumPy, float64, after their papers' equations."""

import math
from typing import NamedTuple

import numpy as np
from softmax import softmax

from moe_jax.config import MoEConfig


class Expected(NamedTuple):
    expert: np.ndarray  # [G, T, K]
    gate: np.ndarray  # [G, T, K]
    probabilities: np.ndarray  # [G, T, A]
    smooth_load: np.ndarray  # [G, T, A]; zeros but for noisy_top_k
    logits: np.ndarray  # [G, T, A], without noise
    input_gate: np.ndarray  # [G, T, K]; ones but for llama4
    identity_gate: np.ndarray  # [G, T, 1]; zeros but for longcat
    kept: np.ndarray  # [G, T, K]; all but for top_p


def best(scores, k):
    """Indices of the k largest, the lower index first among equals."""
    return sorted(range(len(scores)), key=lambda e: (-scores[e], e))[:k]


def within_groups(scores, moe: MoEConfig):
    """Scores of the experts in a token's best groups, -inf elsewhere (DeepSeek-V2 section 2.2.2, V3 section 2.1.2)."""
    size = moe.num_experts // moe.expert_groups
    members = [range(g * size, (g + 1) * size) for g in range(moe.expert_groups)]
    terms = 2 if moe.group_score == "top2" else 1
    group_scores = [sum(sorted(scores[e] for e in group)[-terms:]) for group in members]
    allowed = [e for g in best(group_scores, moe.top_groups) for e in members[g]]
    return [scores[e] if e in allowed else -np.inf for e in range(len(scores))]


SCORES = {  # of the routers that choose by score; softmax for the others in PLAIN
    "sigmoid": lambda logits: 1 / (1 + np.exp(-logits)),
    "llama4": lambda logits: 1 / (1 + np.exp(-logits)),
    "sqrt_softplus": lambda logits: np.sqrt(np.log1p(np.exp(logits))),
}
PLAIN = (*SCORES, "switch", "gshard", "top_k", "top_p", "gemma4", "longcat", "sinkhorn")  # sinkhorn in evaluation


def plain_top_k(logits, bias, moe: MoEConfig):
    """One token of the routers in PLAIN: DeepSeek-V3's equations 12 to 16, with other scores for the others."""
    scores = SCORES.get(moe.router, softmax)(logits)
    ranked = scores + bias
    chosen = best(within_groups(ranked, moe) if moe.expert_groups > 1 else ranked, moe.top_k)
    gate = scores[chosen]
    if moe.normalize_gates or moe.router == "gshard":
        gate = gate / gate.sum()
    return chosen, gate * moe.routed_scaling, scores / scores.sum()


def gates_of(moe: MoEConfig, chosen, gate, scale):
    """(gate, input gate, gate of the token itself, kept) of one token whose chosen experts have the scores `gate`."""
    ones, chosen = np.ones(len(gate)), np.array(chosen)
    if moe.router == "llama4":  # what an expert reads is weighed, and not what it writes
        return ones, gate, [0.0], ones
    if moe.router == "gemma4":
        return gate * scale[chosen], ones, [0.0], ones
    if moe.router == "longcat":  # a null expert returns the token
        return gate, ones, [gate[chosen >= moe.num_experts].sum()], ones
    if moe.router == "top_p":  # the fewest that reach p
        enough = next((k for k in range(1, len(gate)) if gate[:k].sum() >= moe.top_p), len(gate))
        return gate, ones, [0.0], np.arange(len(gate)) < enough
    return gate, ones, [0.0], ones


def kth_excluding(values, k, i):
    """The k-th largest of all components but the i-th (Shazeer et al. 2017, appendix A)."""
    return sorted((v for j, v in enumerate(values) if j != i), reverse=True)[k - 1]


def noisy_top_k(clean, raw_deviation, noise, k):
    """One token: Shazeer et al. 2017, equations 3 to 5, 8 and 9."""
    deviation = np.log1p(np.exp(raw_deviation))
    noisy = clean + noise * deviation
    chosen = best(noisy, k)
    load = [
        (1 + math.erf((clean[i] - kth_excluding(noisy, k, i)) / deviation[i] / math.sqrt(2))) / 2
        for i in range(len(clean))
    ]
    return chosen, softmax(noisy[chosen]), softmax(noisy), load


def sinkhorn(logits, valid, iterations):
    """[T, E]: exp(logits) of the valid tokens with rows scaled to sums of 1 and columns to T / E, in turn."""
    matrix = np.exp(logits)
    for _ in range(iterations):
        matrix = matrix / matrix.sum(axis=1, keepdims=True)
        matrix = matrix * valid.sum() / logits.shape[1] / matrix[valid].sum(axis=0)
    return matrix


def route(moe: MoEConfig, weights, x, valid, noise, step, train) -> Expected:
    """`weights`: weight [D, A] and, where the router has them, bias, balance_bias and scale [A], and noise [D, A]."""
    zeros = np.zeros(moe.num_experts + moe.null_experts)
    last = moe.final_temperature or moe.temperature
    done = min(step / (moe.temperature_steps - 1), 1) if moe.temperature_steps else 0
    temperature = moe.temperature + (last - moe.temperature) * done
    rows = []
    for group, group_valid, group_noise in zip(x, valid, noise, strict=True):
        logits = (group @ weights["weight"] + weights.get("bias", zeros)) / temperature
        assignment = sinkhorn(logits, group_valid, moe.sinkhorn_iterations)
        for t, token in enumerate(group):
            if moe.router == "noisy_top_k":
                row = noisy_top_k(logits[t], token @ weights["noise"], group_noise[t], moe.top_k)
            else:
                assert moe.router in PLAIN, f"there are no loops for {moe.router}"
                row = (*plain_top_k(logits[t], weights.get("balance_bias", zeros), moe), zeros)
            if moe.router == "sinkhorn" and train:
                chosen = best(assignment[t], moe.top_k)
                row = (chosen, softmax(logits[t])[chosen], *row[2:])
            chosen, gate, probabilities, load = row
            gate, input_gate, identity_gate, kept = gates_of(moe, chosen, gate, weights.get("scale"))
            chosen = np.where(kept, chosen, zeros.size)  # past the last expert: no choice
            identity_gate = np.array(identity_gate) * group_valid[t]
            rows.append((chosen, gate, probabilities, load, logits[t], input_gate, identity_gate, kept))
    shaped = [np.array(column).reshape(*x.shape[:2], -1) for column in zip(*rows, strict=True)]
    return Expected(*shaped)
