"""DeepSeek-V2 (DeepSeek-AI 2024) and DeepSeek-V3 (DeepSeek-AI 2024), as which R1 and Kimi K2 are stored too."""

from typing import Any

from moe_jax.config.schema import RunConfig
from moe_jax.interop.description import Description
from moe_jax.interop.families import common
from moe_jax.interop.families.family import Family, Fields
from moe_jax.interop.table import TRANSPOSED, Row, Table
from moe_jax.models.attention.rotary import yarn_magnitude


def _latent(c: Description) -> Fields:
    """The fields of multi-head latent attention; YaRN there also sharpens the scores, by mscale_all_dim."""
    c.need("attention_bias", False)
    plain, turned = c.number("qk_nope_head_dim"), c.number("qk_rope_head_dim")
    c.ignore(["qk_head_dim", "head_dim"])
    scaling = {**(c.take("rope_scaling", {}) or {}), **c.take("rope_parameters", {})}
    kind, weight = scaling.get("rope_type", scaling.get("type", "default")), scaling.get("mscale_all_dim")
    magnitude = yarn_magnitude(float(scaling["factor"]), float(weight)) if kind != "default" and weight else 1.0
    return {
        **common.decoder(c),
        "attention.kind": "latent",
        "attention.query_rank": c.number("q_lora_rank", 0),
        "attention.kv_rank": c.number("kv_lora_rank"),
        "attention.rope_dim": turned,
        "attention.value_dim": c.number("v_head_dim"),
        "attention.scale": 0.0 if magnitude == 1 else (plain + turned) ** -0.5 * magnitude**2,
        "model.head_dim": plain,
    }


def _write_latent(run: RunConfig) -> dict[str, Any]:
    model, attention = run.model, run.attention
    size = model.head_dim + attention.rope_dim
    written = common.write_decoder(run)
    written.pop("head_dim")
    if attention.scale and attention.rope_scaling == "yarn":
        magnitude = (attention.scale * size**0.5) ** 0.5
        weight = (magnitude - 1) / (yarn_magnitude(attention.rope_factor) - 1)
        written["rope_parameters"]["mscale_all_dim"] = round(weight, 9)
        written["rope_parameters"]["mscale"] = round(weight, 9)
        written["rope_parameters"]["attention_factor"] = attention.rope_attention_factor
    return {
        **written,
        "attention_bias": False,
        "q_lora_rank": attention.query_rank or None,
        "kv_lora_rank": attention.kv_rank,
        "qk_nope_head_dim": model.head_dim,
        "qk_rope_head_dim": attention.rope_dim,
        "v_head_dim": attention.value_dim or model.head_dim,
    }


def _experts(c: Description, **others: Any) -> Fields:
    c.need("moe_layer_freq", 1)
    return common.experts(
        c.number("n_routed_experts"),
        c.number("num_experts_per_tok"),
        c.number("moe_intermediate_size"),
        first_dense=c.number("first_k_dense_replace", 0),
        num_shared_experts=c.number("n_shared_experts", 0),
        routed_scaling=c.real("routed_scaling_factor", 1.0),
        **others,
    )


def write_experts(run: RunConfig) -> dict[str, Any]:
    """The way back of the experts' fields, with which other families share their names."""
    moe = run.moe
    return {
        "n_routed_experts": moe.num_experts,
        "num_experts_per_tok": moe.top_k,
        "moe_intermediate_size": moe.d_ff,
        "first_k_dense_replace": moe.first_dense,
        "n_shared_experts": moe.num_shared_experts,
        "routed_scaling_factor": moe.routed_scaling,
        "norm_topk_prob": moe.normalize_gates,
        **common.write_groups(moe),
    }


def _read_2(c: Description) -> Fields:
    """Gates are never divided by their sum: the published code asks for it in vain."""
    c.need("mlp_bias", False)
    c.need("scoring_func", "softmax")
    c.ignore(["norm_topk_prob"])
    limited = c.need("topk_method", "greedy", "group_limited_greedy") == "group_limited_greedy"
    grouped = common.groups(c, "max")
    return {**_latent(c), "attention.rope_interleaved": True, **_experts(c), **(grouped if limited else {})}


def _write_2(run: RunConfig) -> dict[str, Any]:
    method = "group_limited_greedy" if run.moe.top_groups else "greedy"
    return {**_write_latent(run), **write_experts(run), "topk_method": method, "scoring_func": "softmax"}


def read_sigmoid_experts(c: Description, *other_names: str) -> Fields:
    """Experts chosen by sigmoid scores plus a correction bias, in limited groups (DeepSeek-V3, section 2.1.2); a family
    may call the scoring by `other_names` too.
    """
    c.need("scoring_func", "sigmoid", *other_names)
    c.need("topk_method", "noaux_tc")
    normalize = bool(c.take("norm_topk_prob", True))
    fields = _experts(c, router="sigmoid", normalize_gates=normalize, balance_bias=True)
    return {**fields, **common.groups(c, "top2")}


def _read_3(c: Description) -> Fields:
    interleaved = bool(c.take("rope_interleave", True))
    c.ignore(["num_mtp_layers"])
    for name in ("routed_scaling_factor", "n_group", "topk_group"):
        c.say_one_of(name)
    return {**_latent(c), "attention.rope_interleaved": interleaved, **read_sigmoid_experts(c)}


def _write_3(run: RunConfig) -> dict[str, Any]:
    return {
        **_write_latent(run),
        **write_experts(run),
        "rope_interleave": run.attention.rope_interleaved,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "num_nextn_predict_layers": 0,
    }


LATENT = (
    Row("attention/q", "self_attn.q_proj.weight", TRANSPOSED),
    Row("attention/q_down", "self_attn.q_a_proj.weight", TRANSPOSED),
    Row("attention/q_norm/scale", "self_attn.q_a_layernorm.weight"),
    Row("attention/q_up", "self_attn.q_b_proj.weight", TRANSPOSED),
    Row("attention/kv_down", "self_attn.kv_a_proj_with_mqa.weight", TRANSPOSED),
    Row("attention/kv_norm/scale", "self_attn.kv_a_layernorm.weight"),
    Row("attention/kv_up", "self_attn.kv_b_proj.weight", TRANSPOSED),
    Row("attention/out", "self_attn.o_proj.weight", TRANSPOSED),
)
NETWORKS = (*common.DENSE, common.ROUTER, *common.EXPERTS, *common.SHARED)
DEEPSEEK_V2 = Family(
    "deepseek_v2",
    "DeepseekV2ForCausalLM",
    _read_2,
    _write_2,
    Table(common.MODEL, (*common.PRE_NORMS, *LATENT, *NETWORKS)),
)
# The layers behind the last predict further tokens in training (multi-token prediction, section 2.2).
DEEPSEEK_V3 = Family(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    _read_3,
    _write_3,
    Table(common.MODEL, (*common.PRE_NORMS, *LATENT, *NETWORKS, common.CORRECTION)),
    without_counterpart=(r"model\.layers\.{num_layers}\..*",),
)
