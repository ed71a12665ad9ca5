"""What most families share: the fields of a decoder, its rotary positions, and the rows of attention and experts."""

from typing import Any

from moe_jax.config.rules import ConfigError
from moe_jax.config.schema import AttentionConfig, MoEConfig, RunConfig
from moe_jax.interop.description import Description
from moe_jax.interop.families.family import Fields
from moe_jax.interop.table import TRANSPOSED, Layout, Row
from moe_jax.models.attention.rotary import yarn_magnitude

MODEL = (
    Row("embedding", "model.embed_tokens.weight"),
    Row("norm/scale", "model.norm.weight"),
    Row("head", "lm_head.weight", TRANSPOSED),
)
PRE_NORMS = (
    Row("norm_attention/scale", "input_layernorm.weight"),
    Row("norm_feed_forward/scale", "post_attention_layernorm.weight"),
)
ATTENTION = (
    *(Row(f"attention/{name}", f"self_attn.{name}_proj.weight", TRANSPOSED) for name in "qkv"),
    *(Row(f"attention/{name}_bias", f"self_attn.{name}_proj.bias") for name in "qkv"),
    Row("attention/out", "self_attn.o_proj.weight", TRANSPOSED),
    Row("attention/out_bias", "self_attn.o_proj.bias"),
    Row("attention/q_norm/scale", "self_attn.q_norm.weight"),
    Row("attention/k_norm/scale", "self_attn.k_norm.weight"),
)
NAMES = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
NUMBERED = {"gate": "w1", "up": "w3", "down": "w2"}  # as Mixtral has them


def network(ours: str, theirs: str, names: dict[str, str] = NAMES) -> tuple[Row, ...]:
    """The three matrices of gated feed-forward networks: `ours` is a path, `theirs` what stands before their names."""
    return tuple(Row(f"{ours}/{our}", f"{theirs}.{their}.weight", TRANSPOSED) for our, their in names.items())


DENSE = network("feed_forward", "mlp")
ROUTER = Row("moe/router/weight", "mlp.gate.weight", TRANSPOSED)
EXPERTS = network("moe/experts", "mlp.experts.{expert}")
SHARED = network("moe/shared", "mlp.shared_experts")
CORRECTION = Row("moe/router/balance_bias", "mlp.gate.e_score_correction_bias")
CORRECTION_ROW = Row("moe/router/balance_bias", "mlp.moe_statics.e_score_correction_bias", Layout(leading=True))


def decoder(c: Description, d_ff: str = "intermediate_size") -> Fields:
    """Fields that every decoder has; `d_ff` names the size of its dense feed-forward layers."""
    c.need("hidden_act", "silu")
    heads, d_model = c.number("num_attention_heads"), c.number("hidden_size")
    return {
        "model.num_layers": c.number("num_hidden_layers"),
        "model.d_model": d_model,
        "model.d_ff": c.number(d_ff),
        "model.num_heads": heads,
        "model.num_kv_heads": c.number("num_key_value_heads", heads),
        "model.head_dim": c.number("head_dim", d_model // max(heads, 1)),
        "model.vocab_size": c.number("vocab_size"),
        "model.activation": "swiglu",
        "model.tie_embeddings": bool(c.take("tie_word_embeddings", False)),
        "model.norm_eps": c.real("rms_norm_eps"),
        **rotary(c),
    }


def write_decoder(run: RunConfig, d_ff: str = "intermediate_size") -> dict[str, Any]:
    """The way back of `decoder`."""
    model = run.model
    return {
        "hidden_act": "silu",
        "num_hidden_layers": model.num_layers,
        "hidden_size": model.d_model,
        d_ff: model.d_ff,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "vocab_size": model.vocab_size,
        "tie_word_embeddings": model.tie_embeddings,
        "rms_norm_eps": model.norm_eps,
        "rope_parameters": write_rotary(run.attention),
    }


# What rope_theta is where a config.json does not say it, of families whose default is not 10,000.
THETAS = {"mixtral": 1e6, "minimax_m2": 5e6, "flex_olmo": 5e5, "ernie4_5_moe": 5e5, "gpt_oss": 150_000.0}


def rotary(c: Description) -> Fields:
    """Rotary positions, in the newer form (`rope_parameters`) or the older (`rope_theta` and `rope_scaling`)."""
    theta = THETAS.get(c.take("model_type", ""), 10_000.0)
    scaling = {**(c.take("rope_scaling", {}) or {}), **c.take("rope_parameters", {})}
    kind = scaling.pop("rope_type", None) or scaling.pop("type", None) or "default"
    scaling.pop("type", None)
    fraction = scaling.pop("partial_rotary_factor", None) or c.real("partial_rotary_factor", 1.0)
    fields: Fields = {
        "attention.rope_theta": float(scaling.pop("rope_theta", None) or c.real("rope_theta", theta)),
        "attention.rope_fraction": float(fraction),
    }
    c.ignore(["rope_theta", "partial_rotary_factor"])
    if kind not in READERS:
        raise ConfigError(f"{c.place}: rope_type={kind!r} is not supported, only {', '.join(READERS)} are")
    fields |= READERS[kind](Description(scaling, f"{c.place}: rope_parameters"), c)
    return fields


def _plain(scaling: Description, c: Description) -> Fields:
    scaling.ignore(["factor", "original_max_position_embeddings"])
    scaling.finish()
    return {}


def _linear(scaling: Description, c: Description) -> Fields:
    fields = {"attention.rope_scaling": "linear", "attention.rope_factor": scaling.real("factor")}
    scaling.finish()
    return fields


def _llama3(scaling: Description, c: Description) -> Fields:
    fields = {
        "attention.rope_scaling": "llama3",
        "attention.rope_factor": scaling.real("factor"),
        "attention.rope_low_frequency": scaling.real("low_freq_factor"),
        "attention.rope_high_frequency": scaling.real("high_freq_factor"),
        "attention.rope_original_length": scaling.number("original_max_position_embeddings"),
    }
    scaling.finish()
    return fields


def _yarn(scaling: Description, c: Description) -> Fields:
    original = scaling.number("original_max_position_embeddings", None)
    original = original or c.number("original_max_position_embeddings", None) or c.number("max_position_embeddings")
    factor = scaling.real("factor", None) or c.number("max_position_embeddings") / original
    mscale, all_dim = scaling.real("mscale", None), scaling.real("mscale_all_dim", None)
    attention = scaling.real("attention_factor", None)
    if attention is None and mscale and all_dim:
        attention = yarn_magnitude(factor, mscale) / yarn_magnitude(factor, all_dim)
    fields = {
        "attention.rope_scaling": "yarn",
        "attention.rope_factor": factor,
        "attention.rope_original_length": original,
        "attention.rope_beta_fast": scaling.real("beta_fast", 32.0),
        "attention.rope_beta_slow": scaling.real("beta_slow", 1.0),
        "attention.rope_truncate": bool(scaling.take("truncate", True)),
        "attention.rope_attention_factor": attention or 0.0,
    }
    scaling.finish()
    return fields


READERS = {"default": _plain, "linear": _linear, "llama3": _llama3, "yarn": _yarn}


def write_rotary(attention: AttentionConfig) -> dict[str, Any]:
    """The way back of `rotary`, in the newer form."""
    written: dict[str, Any] = {
        "rope_type": attention.rope_scaling or "default",
        "rope_theta": attention.rope_theta,
    }
    if attention.rope_fraction != 1:
        written["partial_rotary_factor"] = attention.rope_fraction
    if attention.rope_scaling:
        written["factor"] = attention.rope_factor
    if attention.rope_scaling in ("llama3", "yarn"):
        written["original_max_position_embeddings"] = attention.rope_original_length
    if attention.rope_scaling == "llama3":
        written |= {
            "low_freq_factor": attention.rope_low_frequency,
            "high_freq_factor": attention.rope_high_frequency,
        }
    if attention.rope_scaling == "yarn":
        written |= {
            "beta_fast": attention.rope_beta_fast,
            "beta_slow": attention.rope_beta_slow,
            "truncate": attention.rope_truncate,
        }
        if attention.rope_attention_factor:
            written["attention_factor"] = attention.rope_attention_factor
    return written


def windows(c: Description, layers: int, window: int) -> Fields:
    """Sliding windows by layer, from `layer_types`; without it no layer has one."""
    types = c.take("layer_types", None)
    if types is None:
        return {}
    sizes = {"full_attention": 0, "sliding_attention": window}
    if not isinstance(types, list) or len(types) != layers or set(types) - set(sizes):
        raise ConfigError(
            f"{c.place}: layer_types={types!r} has to name one of {', '.join(sizes)} for each of {layers} layers"
        )
    by_layer = tuple(sizes[kind] for kind in types)
    if len(set(by_layer)) == 1:
        return {"attention.window": by_layer[0]}
    period = next(p for p in range(1, layers + 1) if by_layer == (by_layer[:p] * layers)[:layers])
    return {"attention.windows": by_layer[:period]}


def write_layer_types(run: RunConfig) -> list[str]:
    """The way back of `windows`."""
    given = run.attention.windows or (run.attention.window,)
    return [
        "sliding_attention" if given[layer % len(given)] else "full_attention" for layer in range(run.model.num_layers)
    ]


def experts(num_experts: int, top_k: int, d_ff: int, **others: Any) -> Fields:
    """Fields of the MoE layers, given by keyword without `moe.`; no token is dropped, in training neither."""
    fields = {
        "num_experts": num_experts,
        "top_k": top_k,
        "d_ff": d_ff,
        "activation": "swiglu",
        "router": "top_k",
        "capacity_factor": num_experts / top_k,
        "eval_capacity_factor": num_experts / top_k,
        **others,
    }
    return {f"moe.{name}": value for name, value in fields.items()}


def groups(c: Description, score: str) -> Fields:
    """Limited expert groups, `n_group` of which `topk_group` may be used; one group limits nothing."""
    number, top = c.number("n_group", 1), c.number("topk_group", 1)
    if number <= 1 or top >= number:
        return {}
    return {"moe.expert_groups": number, "moe.top_groups": top, "moe.group_score": score}


def write_groups(moe: MoEConfig) -> dict[str, int]:
    """The way back of `groups`."""
    return {"n_group": moe.expert_groups, "topk_group": moe.top_groups or 1}
