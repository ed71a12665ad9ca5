"""GLM-4.5 (Zhipu AI 2025) and dots.llm1 (rednote 2025): DeepSeek-V3's experts behind grouped-query attention."""

from typing import Any

from moe_jax.config.schema import RunConfig
from moe_jax.interop.description import Description
from moe_jax.interop.families import common
from moe_jax.interop.families.deepseek import NETWORKS, read_sigmoid_experts, write_experts
from moe_jax.interop.families.family import Family, Fields
from moe_jax.interop.table import Table


def _read_glm(c: Description) -> Fields:
    c.ignore(["num_mtp_layers"])
    c.say_one_of("partial_rotary_factor", "rope_parameters")
    return {
        **common.decoder(c),
        "attention.bias": bool(c.take("attention_bias", False)),
        "attention.qk_norm": "head" if c.take("use_qk_norm", False) else "",
        **read_sigmoid_experts(c),
    }


def _write_glm(run: RunConfig) -> dict[str, Any]:
    return {
        **common.write_decoder(run),
        **write_experts(run),
        "attention_bias": run.attention.bias,
        "use_qk_norm": run.attention.qk_norm == "head",
        "num_nextn_predict_layers": 0,
    }


def _read_dots(c: Description) -> Fields:
    bias = bool(c.take("attention_bias", False))
    window = c.number("sliding_window", 0)
    if window and c.number("max_window_layers", 0) < c.number("num_hidden_layers"):
        c.say_one_of("layer_types")
    c.ignore(["max_window_layers"])
    c.take("norm_topk_prob", False)
    return {
        **common.decoder(c),
        **common.windows(c, c.number("num_hidden_layers"), window),
        "attention.bias": bias,
        "attention.out_bias": bias,
        "attention.qk_norm": "head",
        **read_sigmoid_experts(c, "noaux_tc"),
        "moe.normalize_gates": bool(c.take("norm_topk_prob", False)),
    }


def _write_dots(run: RunConfig) -> dict[str, Any]:
    return {
        **common.write_decoder(run),
        **write_experts(run),
        "attention_bias": run.attention.bias,
        "sliding_window": max((run.attention.window, *run.attention.windows)) or None,
        "layer_types": common.write_layer_types(run),
    }


TABLE = Table(common.MODEL, (*common.PRE_NORMS, *common.ATTENTION, *NETWORKS, common.CORRECTION))
# The layers behind the last predict further tokens in training.
GLM4_MOE = Family("glm4_moe", "Glm4MoeForCausalLM", _read_glm, _write_glm, TABLE, (r"model\.layers\.{num_layers}\..*",))
DOTS1 = Family("dots1", "Dots1ForCausalLM", _read_dots, _write_dots, TABLE)
