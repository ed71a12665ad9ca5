"""Every router by its name in a config. Add one by writing it in a file of this package and naming it in `ROUTERS`."""

from moe_jax.config.schema import MoEConfig
from moe_jax.moe.router import Router
from moe_jax.moe.routers.controls import Hash, Random
from moe_jax.moe.routers.expert_choice import ExpertChoice
from moe_jax.moe.routers.gemma4 import Gemma4
from moe_jax.moe.routers.gshard import GShard
from moe_jax.moe.routers.llama4 import Llama4
from moe_jax.moe.routers.longcat import LongCat
from moe_jax.moe.routers.noisy_top_k import NoisyTopK
from moe_jax.moe.routers.sinkhorn import Sinkhorn
from moe_jax.moe.routers.soft import Soft
from moe_jax.moe.routers.sqrt_softplus import HashedSqrtSoftplus, SqrtSoftplus
from moe_jax.moe.routers.top_k import Sigmoid, Switch, TopK
from moe_jax.moe.routers.top_p import TopP

ROUTERS: dict[str, type[Router]] = {
    "switch": Switch,
    "gshard": GShard,
    "top_k": TopK,
    "sigmoid": Sigmoid,
    "top_p": TopP,
    "llama4": Llama4,
    "gemma4": Gemma4,
    "longcat": LongCat,
    "sqrt_softplus": SqrtSoftplus,
    "hashed_sqrt_softplus": HashedSqrtSoftplus,
    "noisy_top_k": NoisyTopK,
    "sinkhorn": Sinkhorn,
    "hash": Hash,
    "random": Random,
    "expert_choice": ExpertChoice,
    "soft": Soft,
}


def num_ranks(moe: MoEConfig) -> int:
    """K, the choices that a token has in a `Routing`: all experts where the router fills slots."""
    return moe.num_experts if ROUTERS[moe.router].fills_slots else moe.top_k
