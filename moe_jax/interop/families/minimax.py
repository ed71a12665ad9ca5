"""MiniMax-M2 (MiniMax 2025)."""

from typing import Any

from moe_jax.config.rules import ConfigError
from moe_jax.config.schema import RunConfig
from moe_jax.interop.description import Description
from moe_jax.interop.families import common, mixtral
from moe_jax.interop.families.family import Family, Fields
from moe_jax.interop.table import Row, Table


def _read(c: Description) -> Fields:
    c.need("scoring_func", "sigmoid")
    c.need("qk_norm_type", "per_layer")
    c.need("use_qk_norm", True)
    c.need("use_routing_bias", True)
    c.need("shared_intermediate_size", 0)
    for name in ("layernorm_full_attention_beta", "layernorm_linear_attention_beta", "layernorm_mlp_beta"):
        c.need(name, 1.0)
    if set(c.take("attn_type_list", [])) - {1}:
        raise ConfigError(f"{c.place}: attn_type_list has others than 1: only full attention is supported")
    c.ignore(["use_mtp", "num_mtp_modules", "mtp_transformer_layers", "max_model_len"])
    c.ignore(["mlp_intermediate_size", "shared_moe_mode"])  # of layers that this model does not have
    fields = common.decoder(c)
    turned = c.number("rotary_dim", None)
    if turned is not None:
        fields["attention.rope_fraction"] = turned / fields["model.head_dim"]
    return {
        **fields,
        "attention.qk_norm": "projection",
        **common.experts(
            c.number("num_local_experts"),
            c.number("num_experts_per_tok"),
            c.number("intermediate_size"),
            router="sigmoid",
            normalize_gates=True,
            balance_bias=True,
        ),
    }


def _write(run: RunConfig) -> dict[str, Any]:
    return {
        **common.write_decoder(run),
        "rotary_dim": int(run.model.head_dim * run.attention.rope_fraction),
        "num_local_experts": run.moe.num_experts,
        "num_experts_per_tok": run.moe.top_k,
        "scoring_func": "sigmoid",
        "use_routing_bias": True,
        "use_qk_norm": True,
        "qk_norm_type": "per_layer",
    }


CORRECTION = Row("moe/router/balance_bias", "block_sparse_moe.e_score_correction_bias")
MINIMAX_M2 = Family(
    "minimax_m2",
    "MiniMaxM2ForCausalLM",
    _read,
    _write,
    Table(common.MODEL, (*common.PRE_NORMS, *common.ATTENTION, mixtral.ROUTER, *mixtral.EXPERTS, CORRECTION)),
    without_counterpart=(r"model\.mtp\..*",),
)
