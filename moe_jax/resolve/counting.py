"""Parameters and FLOPs of a configuration, in closed form: nothing is built.

The tests hold the parameter counts against the real parameter tree, and the FLOPs against what XLA counts.
"""

from fractions import Fraction
from typing import NamedTuple

from moe_jax.config.capacity import capacity
from moe_jax.config.layers import MOE, segments
from moe_jax.config.schema import MoEConfig, RunConfig
from moe_jax.moe.routers import ROUTERS

GATED = frozenset({"swiglu", "geglu"})


class Counts(NamedTuple):
    """Sizes of a model."""

    total_params: int
    active_params: int  # that one token meets: K of the E routed experts (fewer, if it takes null experts; as many as
    # slots hold, where every slot is used), and everything else
    embedding_params: int  # input embedding and, untied, the output head; part of both counts above
    flops_per_token: int  # training: forward and backward pass


def feed_forward_params(d_model: int, d_ff: int, activation: str) -> int:
    """Weights of one feed-forward network or one expert; there are no biases."""
    return (3 if activation in GATED else 2) * d_model * d_ff


def count(run: RunConfig) -> Counts:
    """Counts of `run`.

    FLOPs are those of matrix products, 2 a multiply-add, three times the forward pass (the convention of PaLM, appendix
    B): 6 a matmul weight that is active, and 12 L H N a layer for scores and values over the whole sequence (causal
    attention does need only half of them). Recomputation (remat) and empty or dropped expert slots do not count.
    """
    model, moe = run.model, run.moe
    D = model.d_model
    attention = 2 * D * model.head_dim * (model.num_heads + model.num_kv_heads)
    norms = 2 * D
    dense = feed_forward_params(D, model.d_ff, model.activation)
    expert = feed_forward_params(D, moe.d_ff, moe.activation)
    shared = feed_forward_params(D, moe.shared_d_ff, moe.activation)

    total = active = matmul = 0
    for part in segments(run):
        for kind in part.pattern:
            routed = kind == MOE
            kind_of = ROUTERS[part.moe.router]
            router, visited = kind_of.matmul_params(D, part.moe), round(_experts_a_token(part.moe) * expert)
            common = attention + (shared if routed else dense)
            vectors = norms + routed * kind_of.vector_params(part.moe)
            total += part.repeats * (common + vectors + routed * (router + part.moe.num_experts * expert))
            active += part.repeats * (common + vectors + routed * (router + visited))
            matmul += part.repeats * (common + routed * (kind_of.multiply_adds(D, part.moe) + visited))
    table = model.vocab_size * D
    embedding = table if model.tie_embeddings else 2 * table
    scores = 12 * run.data.sequence_length * model.num_heads * model.head_dim * model.num_layers
    return Counts(
        total_params=total + embedding + D,
        active_params=active + embedding + D,
        embedding_params=embedding,
        flops_per_token=6 * (matmul + table) + scores,
    )


def _experts_a_token(moe: MoEConfig) -> Fraction:
    """K, or on average E * C / T where every slot is used."""
    if moe.num_experts == 0 or not ROUTERS[moe.router].fills_slots:
        return Fraction(moe.top_k)
    slots = capacity(moe.capacity_factor, moe.top_k, moe.group_size, moe.num_experts)
    return Fraction(moe.num_experts * slots, moe.group_size)
