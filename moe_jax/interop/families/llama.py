"""Llama: dense decoders (Touvron et al. 2023; Llama 3, Meta 2024)."""

from moe_jax.config.schema import RunConfig
from moe_jax.interop.description import Description
from moe_jax.interop.families import common
from moe_jax.interop.families.family import Family, Fields
from moe_jax.interop.table import Table


def _read(c: Description) -> Fields:
    c.need("mlp_bias", False)
    bias = bool(c.take("attention_bias", False))
    return {
        **common.decoder(c),
        "attention.bias": bias,
        "attention.out_bias": bias,
    }


def _write(run: RunConfig) -> dict[str, object]:
    return {**common.write_decoder(run), "attention_bias": run.attention.bias, "mlp_bias": False}


LLAMA = Family(
    "llama",
    "LlamaForCausalLM",
    _read,
    _write,
    Table(common.MODEL, (*common.PRE_NORMS, *common.ATTENTION, *common.DENSE)),
    without_counterpart=(r".*\.rotary_emb\.inv_freq",),
)
