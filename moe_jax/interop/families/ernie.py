"""ERNIE 4.5, its text models with experts (Baidu 2025)."""

from typing import Any

from moe_jax.config.rules import ConfigError
from moe_jax.config.schema import RunConfig
from moe_jax.interop.description import Description
from moe_jax.interop.families import common
from moe_jax.interop.families.family import Family, Fields
from moe_jax.interop.table import Table

LEAST_SUM = 1e-9  # of a token's gates, which are divided by their sum and not by more


def _read(c: Description) -> Fields:
    c.need("use_bias", False)
    c.need("use_rmsnorm", True)
    c.need("moe_gate", "topk")
    c.ignore(["moe_capacity", "moe_use_aux_free", "moe_group"])
    c.say_one_of("tie_word_embeddings")
    if c.real("moe_norm_min", 1e-12) > LEAST_SUM:
        raise ConfigError(f"{c.place}: moe_norm_min is above {LEAST_SUM}, and may be above the sum of gates")
    layers, first = c.number("num_hidden_layers"), c.number("moe_layer_start_index", 1)
    c.need("moe_layer_interval", 1)
    last = c.take("moe_layer_end_index", -1)
    if last not in (-1, layers - 1):
        raise ConfigError(
            f"{c.place}: moe_layer_end_index={last} with {layers} layers is not supported: dense layers behind MoE "
            "layers are not, only leading ones"
        )
    return {
        **common.decoder(c),
        "attention.rope_interleaved": True,
        **common.experts(
            c.number("moe_num_experts"),
            c.number("moe_k"),
            c.number("moe_intermediate_size"),
            first_dense=first,
            num_shared_experts=c.number("moe_num_shared_experts", 0),
            normalize_gates=True,
            balance_bias=True,
        ),
    }


def _write(run: RunConfig) -> dict[str, Any]:
    written = common.write_decoder(run)
    written.pop("head_dim")
    return {
        **written,
        "use_bias": False,
        "moe_num_experts": run.moe.num_experts,
        "moe_k": run.moe.top_k,
        "moe_intermediate_size": run.moe.d_ff,
        "moe_num_shared_experts": run.moe.num_shared_experts,
        "moe_layer_start_index": run.moe.first_dense,
        "moe_layer_end_index": run.model.num_layers - 1,
        "moe_layer_interval": 1,
    }


ERNIE = Family(
    "ernie4_5_moe",
    "Ernie4_5_MoeForCausalLM",
    _read,
    _write,
    Table(
        common.MODEL,
        (
            *(*common.PRE_NORMS, *common.ATTENTION, *common.DENSE),
            *(common.ROUTER, *common.EXPERTS, *common.SHARED, common.CORRECTION_ROW),
        ),
    ),
    without_counterpart=(r"model\.mtp_.*",),
)
