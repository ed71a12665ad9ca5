"""GPT-OSS (OpenAI 2025)."""

from typing import Any

from moe_jax.config.schema import RunConfig
from moe_jax.interop.description import Description
from moe_jax.interop.families import common
from moe_jax.interop.families.family import Family, Fields
from moe_jax.interop.table import COPIED, TRANSPOSED, Layout, Row, Table
from moe_jax.moe.feed_forward import CLAMP, STEEPNESS


def _read(c: Description) -> Fields:
    bias = bool(c.take("attention_bias", True))
    window = c.number("sliding_window", 128)
    c.need("swiglu_limit", CLAMP)
    c.need("swiglu_alpha", STEEPNESS)
    c.ignore(["experts_per_token"])
    c.say_one_of("layer_types")
    c.say_one_of("rope_parameters", "rope_scaling")
    layers = c.number("num_hidden_layers")
    fields = {
        **common.decoder(c),
        **common.windows(c, layers, window),
        "attention.bias": bias,
        "attention.out_bias": bias,
        "attention.sinks": True,
        **common.experts(
            c.number("num_local_experts"),
            c.number("num_experts_per_tok"),
            c.number("intermediate_size"),
            normalize_gates=True,
            router_bias=True,
            expert_bias=True,
        ),
        "moe.activation": "clamped_swiglu",
    }
    return fields


def _write(run: RunConfig) -> dict[str, Any]:
    return {
        **common.write_decoder(run),
        "attention_bias": run.attention.bias,
        "sliding_window": max((run.attention.window, *run.attention.windows)) or None,
        "layer_types": common.write_layer_types(run),
        "num_local_experts": run.moe.num_experts,
        "num_experts_per_tok": run.moe.top_k,
        "swiglu_limit": CLAMP,
        "swiglu_alpha": STEEPNESS,
    }


GATE, UP = (Layout(part=part, parts=2, interleaved=True) for part in (0, 1))
GPT_OSS = Family(
    "gpt_oss",
    "GptOssForCausalLM",
    _read,
    _write,
    Table(
        common.MODEL,
        (
            *common.PRE_NORMS,
            *common.ATTENTION,
            Row("attention/sinks", "self_attn.sinks"),
            Row("moe/router/weight", "mlp.router.weight", TRANSPOSED),
            Row("moe/router/bias", "mlp.router.bias"),
            Row("moe/experts/gate", "mlp.experts.gate_up_proj", GATE),
            Row("moe/experts/up", "mlp.experts.gate_up_proj", UP),
            Row("moe/experts/down", "mlp.experts.down_proj", COPIED),
            Row("moe/experts/gate_bias", "mlp.experts.gate_up_proj_bias", GATE),
            Row("moe/experts/up_bias", "mlp.experts.gate_up_proj_bias", UP),
            Row("moe/experts/down_bias", "mlp.experts.down_proj_bias", COPIED),
        ),
    ),
)
