"""Mixtral (Jiang et al. 2024)."""

from moe_jax.config.schema import RunConfig
from moe_jax.interop.description import Description
from moe_jax.interop.families import common
from moe_jax.interop.families.family import Family, Fields
from moe_jax.interop.table import TRANSPOSED, Row, Table


def _read(c: Description) -> Fields:
    return {
        **common.decoder(c),
        "attention.window": c.number("sliding_window", 0),
        **common.experts(
            c.number("num_local_experts"),
            c.number("num_experts_per_tok"),
            c.number("intermediate_size"),
            normalize_gates=True,
        ),
    }


def _write(run: RunConfig) -> dict[str, object]:
    return {
        **common.write_decoder(run),
        "sliding_window": run.attention.window or None,
        "num_local_experts": run.moe.num_experts,
        "num_experts_per_tok": run.moe.top_k,
    }


ROUTER = Row("moe/router/weight", "block_sparse_moe.gate.weight", TRANSPOSED)
EXPERTS = common.network("moe/experts", "block_sparse_moe.experts.{expert}", common.NUMBERED)
MIXTRAL = Family(
    "mixtral",
    "MixtralForCausalLM",
    _read,
    _write,
    Table(common.MODEL, (*common.PRE_NORMS, *common.ATTENTION, ROUTER, *EXPERTS)),
)
