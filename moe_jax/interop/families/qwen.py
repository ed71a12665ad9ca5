"""Qwen2-MoE (Qwen1.5-MoE, 2024) and Qwen3-MoE (Qwen3, 2025)."""

from moe_jax.config.rules import ConfigError
from moe_jax.config.schema import RunConfig
from moe_jax.interop.description import Description
from moe_jax.interop.families import common
from moe_jax.interop.families.family import Family, Fields
from moe_jax.interop.table import TRANSPOSED, Row, Table


def _experts(c: Description, **others: object) -> Fields:
    """The experts, in every n-th layer. Further dense layers are supported where they are the first ones."""
    every = c.number("decoder_sparse_step", 1)
    dense = c.take("mlp_only_layers", [])
    if dense and (every != 1 or sorted(dense) != list(range(len(dense)))):
        raise ConfigError(
            f"{c.place}: mlp_only_layers={dense} with decoder_sparse_step={every} is not supported: only leading dense "
            "layers are, or every n-th layer an MoE layer"
        )
    return common.experts(
        c.number("num_experts", None) or c.number("num_local_experts"),
        c.number("num_experts_per_tok"),
        c.number("moe_intermediate_size"),
        normalize_gates=bool(c.take("norm_topk_prob", False)),
        every=every,
        first_dense=len(dense),
        **others,
    )


def _write_experts(run: RunConfig) -> dict[str, object]:
    return {
        "num_experts": run.moe.num_experts,
        "num_experts_per_tok": run.moe.top_k,
        "moe_intermediate_size": run.moe.d_ff,
        "norm_topk_prob": run.moe.normalize_gates,
        "decoder_sparse_step": run.moe.every,
        "mlp_only_layers": list(range(run.moe.first_dense)),
    }


def _read_2(c: Description) -> Fields:
    sliding = bool(c.take("use_sliding_window", False))
    window = c.number("sliding_window", 0) if sliding else 0
    c.ignore(["max_window_layers", "sliding_window"])
    if sliding and c.take("layer_types", None) is None:
        raise ConfigError(f"{c.place}: use_sliding_window=True needs layer_types, which says where: add them")
    shared = c.number("shared_expert_intermediate_size")
    return {
        **common.decoder(c),
        **common.windows(c, c.number("num_hidden_layers"), window),
        "attention.bias": bool(c.take("qkv_bias", True)),
        **_experts(c, num_shared_experts=1, shared_d_ff=shared, shared_gate=True),
    }


def _write_2(run: RunConfig) -> dict[str, object]:
    types = common.write_layer_types(run)
    window = max((run.attention.window, *run.attention.windows))
    return {
        **common.write_decoder(run),
        **_write_experts(run),
        "shared_expert_intermediate_size": run.moe.shared_d_ff,
        "qkv_bias": run.attention.bias,
        "layer_types": types,
        "use_sliding_window": window > 0,
        "sliding_window": window or None,
    }


def _read_3(c: Description) -> Fields:
    bias = bool(c.take("attention_bias", False))
    window = c.number("sliding_window", 0) if c.take("use_sliding_window", False) else 0
    c.ignore(["max_window_layers", "sliding_window"])
    return {
        **common.decoder(c),
        "attention.bias": bias,
        "attention.out_bias": bias,
        "attention.qk_norm": "head",
        "attention.window": window,
        **_experts(c),
    }


def _write_3(run: RunConfig) -> dict[str, object]:
    return {
        **common.write_decoder(run),
        **_write_experts(run),
        "attention_bias": run.attention.bias,
        "use_sliding_window": run.attention.window > 0,
        "sliding_window": run.attention.window or None,
    }


LAYER = (*common.PRE_NORMS, *common.ATTENTION, *common.DENSE, common.ROUTER, *common.EXPERTS)
SHARED = (
    *common.network("moe/shared", "mlp.shared_expert"),
    Row("moe/shared_gate", "mlp.shared_expert_gate.weight", TRANSPOSED),
)
QWEN2_MOE = Family("qwen2_moe", "Qwen2MoeForCausalLM", _read_2, _write_2, Table(common.MODEL, (*LAYER, *SHARED)))
QWEN3_MOE = Family("qwen3_moe", "Qwen3MoeForCausalLM", _read_3, _write_3, Table(common.MODEL, LAYER))
