"""Granite 3 with experts (IBM 2024): muP multipliers, and all experts of a layer in one tensor."""

from typing import Any

from moe_jax.config.schema import RunConfig
from moe_jax.interop.description import Description
from moe_jax.interop.families import common
from moe_jax.interop.families.family import Family, Fields
from moe_jax.interop.table import TRANSPOSED, Layout, Row, Table


def _read(c: Description) -> Fields:
    bias = bool(c.take("attention_bias", False))
    return {
        **common.decoder(c),
        "model.embedding_scale": c.real("embedding_multiplier", 1.0),
        "model.residual_scale": c.real("residual_multiplier", 1.0),
        "model.logits_scale": 1 / c.real("logits_scaling", 1.0),
        "attention.scale": c.real("attention_multiplier", 1.0),
        "attention.bias": bias,
        "attention.out_bias": bias,
        **common.experts(
            c.number("num_local_experts"),
            c.number("num_experts_per_tok"),
            c.number("intermediate_size"),
            normalize_gates=True,
        ),
    }


def _write(run: RunConfig) -> dict[str, Any]:
    written = common.write_decoder(run)
    written.pop("head_dim")
    return {
        **written,
        "embedding_multiplier": run.model.embedding_scale,
        "residual_multiplier": run.model.residual_scale,
        "logits_scaling": 1 / run.model.logits_scale,
        "attention_multiplier": run.attention.scale or run.model.head_dim**-0.5,
        "attention_bias": run.attention.bias,
        "num_local_experts": run.moe.num_experts,
        "num_experts_per_tok": run.moe.top_k,
    }


GRANITE = Family(
    "granitemoe",
    "GraniteMoeForCausalLM",
    _read,
    _write,
    Table(
        common.MODEL,
        (
            *(*common.PRE_NORMS, *common.ATTENTION),
            Row("moe/router/weight", "block_sparse_moe.router.layer.weight", TRANSPOSED),
            Row("moe/experts/gate", "block_sparse_moe.input_linear.weight", Layout(transposed=True, part=0, parts=2)),
            Row("moe/experts/up", "block_sparse_moe.input_linear.weight", Layout(transposed=True, part=1, parts=2)),
            Row("moe/experts/down", "block_sparse_moe.output_linear.weight", TRANSPOSED),
        ),
    ),
)
