"""Every family by the `model_type` of its config.json.

Add one in a file of this package: how its config.json reads, the way back, and the table of its weights. Then name it
in `FAMILIES`, give it a fixture (tests/interop/golden/make.py) and a row in docs/models.md.
"""

from moe_jax.interop.families.deepseek import DEEPSEEK_V2, DEEPSEEK_V3
from moe_jax.interop.families.ernie import ERNIE
from moe_jax.interop.families.family import Family, Fields
from moe_jax.interop.families.glm import DOTS1, GLM4_MOE
from moe_jax.interop.families.gpt_oss import GPT_OSS
from moe_jax.interop.families.granite import GRANITE
from moe_jax.interop.families.llama import LLAMA
from moe_jax.interop.families.minimax import MINIMAX_M2
from moe_jax.interop.families.mixtral import MIXTRAL
from moe_jax.interop.families.olmoe import FLEX_OLMO, OLMOE
from moe_jax.interop.families.qwen import QWEN2_MOE, QWEN3_MOE

__all__ = ["FAMILIES", "Family", "Fields"]

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        *(LLAMA, MIXTRAL, OLMOE, FLEX_OLMO, QWEN2_MOE, QWEN3_MOE, DEEPSEEK_V2, DEEPSEEK_V3, GPT_OSS),
        *(GLM4_MOE, DOTS1, MINIMAX_M2, ERNIE, GRANITE),
    )
}
ALIASES = {"kimi_k2": "deepseek_v3"}  # model types that are stored as another
