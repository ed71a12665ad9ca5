"""Parameters and FLOPs of a configuration, in closed form: nothing is built.

The tests hold the parameter counts against the real parameter tree, and the FLOPs against what XLA counts.
"""

from fractions import Fraction
from typing import NamedTuple

from moe_jax.config.layers import DenseSpec, LayerSpec, segments
from moe_jax.config.schema import MoEConfig, RunConfig
from moe_jax.config.weights import matches
from moe_jax.models.attention import ATTENTIONS
from moe_jax.moe.dispatchers import dispatcher_of
from moe_jax.moe.feed_forward import feed_forward_biases, feed_forward_matrices, feed_forward_params
from moe_jax.moe.routers import ROUTERS


class Counts(NamedTuple):
    """Sizes of a model."""

    total_params: int
    active_params: int  # that one token meets: K of the E routed experts (fewer, if it takes null experts; as many as
    # slots hold, where every slot is used), and everything else
    embedding_params: int  # input embedding and, untied, the output head; part of both counts above
    flops_per_token: int  # training: forward and backward pass


class LayerCounts(NamedTuple):
    """Sizes of one layer, or of some of its parts."""

    total: int = 0
    active: int = 0
    multiply_adds: int = 0  # a token's forward pass through matrices with weights
    score_multiply_adds: int = 0  # a token's scores and sums of values in attention


def count(run: RunConfig) -> Counts:
    """Counts `run`.

    FLOPs are those of matrix products, 2 a multiply-add, three times the forward pass (the convention of PaLM, appendix
    B): 6 a matmul weight that is active, and 12 L H N a layer for scores and values over the whole sequence, or over
    the window where attention has one (causal attention does need only half of them). Recomputation (remat) and empty
    or dropped expert slots do not count. Weights that stay as they are (`train.trainable`, adapters) count as if they
    were trained.
    """
    model, total = run.model, _all_layers(run)
    table = model.vocab_size * model.d_model
    embedding = table if model.tie_embeddings else 2 * table
    return Counts(
        total_params=total.total + embedding + model.d_model,
        active_params=total.active + embedding + model.d_model,
        embedding_params=embedding,
        flops_per_token=6 * (total.multiply_adds + table + total.score_multiply_adds),
    )


def causal_flops_per_token(run: RunConfig) -> int:
    """Training FLOPs a token as most published figures count them (Megatron-LM, MaxText): those of `count` less half of
    the scores, since causal attention needs only half of them. A window counts half too, by their convention, although
    nearly all positions see the whole of one that is short.
    """
    return count(run).flops_per_token - 3 * _all_layers(run).score_multiply_adds


def _all_layers(run: RunConfig) -> LayerCounts:
    total = LayerCounts()
    for i, segment in enumerate(segments(run)):
        for j, spec in enumerate(segment.pattern):
            total = _add(total, _layer(run, spec), segment.repeats)
            total = _add(total, _adapters(run, spec, f"segments/{i}/blocks/{j}"), segment.repeats)
    return total


def _add(a: LayerCounts, b: LayerCounts, times: int = 1) -> LayerCounts:
    return LayerCounts(*(x + times * y for x, y in zip(a, b, strict=True)))


def _layer(run: RunConfig, spec: LayerSpec) -> LayerCounts:
    """The parts of a layer, each with its norm."""
    norm, parts = run.model.d_model, LayerCounts()
    for attention in filter(None, (spec.attention, spec.cross_attention)):
        kind, keys = ATTENTIONS[attention.kind], run.data.sequence_length
        params = sum(rows * columns for rows, columns in kind.matrices(run.model, attention).values())
        vectors = kind.vector_params(run.model, attention) + norm
        seen = min(keys, attention.window) if attention.window else keys
        scores = kind.score_multiply_adds(run.model, attention, seen)
        parts = _add(parts, LayerCounts(params + vectors, params + vectors, params, scores))
    if isinstance(spec.feed_forward, DenseSpec):
        params = feed_forward_params(run.model.d_model, *spec.feed_forward)
        return _add(parts, LayerCounts(params + norm, params + norm, params))
    return _add(parts, _add(_experts(run.model.d_model, spec.feed_forward), LayerCounts(norm, norm)))


def _adapters(run: RunConfig, spec: LayerSpec, path: str) -> LayerCounts:
    """The low-rank adapters of a layer."""
    if not run.lora.rank:
        return LayerCounts()
    d_model = run.model.d_model
    one = Fraction(1)
    matrices: dict[str, tuple[tuple[int, int], int, Fraction]] = {}  # shape, copies, copies that a token meets
    for name, attention in (("attention", spec.attention), ("cross_attention", spec.cross_attention)):
        if attention is not None:
            of_kind = ATTENTIONS[attention.kind].matrices(run.model, attention)
            matrices |= {f"{name}/{matrix}": (shape, 1, one) for matrix, shape in of_kind.items()}
    if isinstance(spec.feed_forward, DenseSpec):
        inner = feed_forward_matrices(d_model, *spec.feed_forward)
        matrices |= {f"feed_forward/{matrix}": (shape, 1, one) for matrix, shape in inner.items()}
    else:
        moe = spec.feed_forward
        visits = dispatcher_of(moe).experts_per_token()
        inner = feed_forward_matrices(d_model, moe.d_ff, moe.activation)
        matrices |= {f"moe/experts/{matrix}": (shape, moe.num_experts, visits) for matrix, shape in inner.items()}
        if moe.shared_d_ff:
            inner = feed_forward_matrices(d_model, moe.shared_d_ff, moe.activation)
            matrices |= {f"moe/shared/{matrix}": (shape, 1, one) for matrix, shape in inner.items()}
    paths = {f"{path}/{name}": item for name, item in matrices.items()}
    wanted = [any(hits) for hits in zip(*(matches(list(paths), target) for target in run.lora.targets), strict=True)]
    counts = LayerCounts()
    for (shape, copies, visits), is_wanted in zip(paths.values(), wanted, strict=True):
        pair = run.lora.rank * sum(shape) if is_wanted else 0
        counts = _add(counts, LayerCounts(pair * copies, round(pair * visits), round(pair * visits)))
    return counts


def _experts(d_model: int, moe: MoEConfig) -> LayerCounts:
    expert = feed_forward_params(d_model, moe.d_ff, moe.activation)
    biases = feed_forward_biases(d_model, moe.d_ff, moe.activation) if moe.expert_bias else 0
    shared = feed_forward_params(d_model, moe.shared_d_ff, moe.activation) + moe.shared_gate * d_model
    visits = dispatcher_of(moe).experts_per_token()
    visited = round(visits * expert)
    kind = ROUTERS[moe.router]
    router = kind.matmul_params(d_model, moe) + kind.vector_params(moe)
    return LayerCounts(
        total=shared + router + moe.num_experts * (expert + biases),
        active=shared + router + visited + round(visits * biases),
        multiply_adds=shared + kind.multiply_adds(d_model, moe) + visited,
    )
