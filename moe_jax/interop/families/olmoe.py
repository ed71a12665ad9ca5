"""OLMoE (Muennighoff et al. 2024) and FlexOlmo (Shi et al. 2025), which normalises what parts write."""

from moe_jax.config.schema import RunConfig
from moe_jax.interop.description import Description
from moe_jax.interop.families import common
from moe_jax.interop.families.family import Family, Fields
from moe_jax.interop.table import Row, Table


def _read(c: Description) -> Fields:
    bias = bool(c.take("attention_bias", False))
    c.need("clip_qkv", None)
    return {
        **common.decoder(c),
        "attention.bias": bias,
        "attention.out_bias": bias,
        "attention.qk_norm": "projection",
        **common.experts(
            c.number("num_experts"),
            c.number("num_experts_per_tok"),
            c.number("intermediate_size"),
            normalize_gates=bool(c.take("norm_topk_prob", False)),
        ),
    }


def _write(run: RunConfig) -> dict[str, object]:
    return {
        **common.write_decoder(run),
        "attention_bias": run.attention.bias,
        "num_experts": run.moe.num_experts,
        "num_experts_per_tok": run.moe.top_k,
        "norm_topk_prob": run.moe.normalize_gates,
    }


LAYER = (*common.ATTENTION, common.ROUTER, *common.EXPERTS)
OLMOE = Family("olmoe", "OlmoeForCausalLM", _read, _write, Table(common.MODEL, (*common.PRE_NORMS, *LAYER)))

POST_NORMS = (
    Row("norm_attention/scale", "post_attention_layernorm.weight"),
    Row("norm_feed_forward/scale", "post_feedforward_layernorm.weight"),
)
FLEX_OLMO = Family(
    "flex_olmo",
    "FlexOlmoForCausalLM",
    lambda c: {**_read(c), "model.norm_place": "post"},
    _write,
    Table(common.MODEL, (*POST_NORMS, *LAYER)),
)
