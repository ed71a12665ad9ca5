"""Everything that is summed over the tokens of a layer: for measures, for losses, for the balance bias."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from moe_jax.config.schema import MoEConfig
from moe_jax.moe.bias_updates import BIAS_UPDATES
from moe_jax.moe.losses import active_losses
from moe_jax.moe.measures import MEASURES
from moe_jax.moe.router import columns
from moe_jax.moe.routers import ROUTERS, num_ranks
from moe_jax.moe.routing import Routing
from moe_jax.moe.sums import Observed, SumOf, Sums, total


def observe(moe: MoEConfig, routing: Routing, kept: Bool[Array, "G T K"], sequences: int) -> Sums:
    """Sums over this device's tokens, the groups of `sequences` sequences."""
    return total([*_functions(moe), *_evidence(moe)], Observed(routing, kept, sequences))


def num_sums(moe: MoEConfig) -> int:
    """Numbers that `observe` gives for one layer, at most, without those that only the balance bias looks at."""
    return _size(moe, _functions(moe))


def num_evidence(moe: MoEConfig) -> int:
    """Numbers that `observe` gives for one layer and only the balance bias looks at."""
    return _size(moe, [*_functions(moe), *_evidence(moe)]) - num_sums(moe)


def _size(moe: MoEConfig, functions: list[SumOf]) -> int:
    """Numbers in the sums of a router that fills in every part of a routing."""
    ranks = num_ranks(moe)
    zeros = lambda *shape: jnp.zeros((1, moe.group_size, *shape))

    def of_blank_routing() -> Sums:
        routing = Routing(
            expert=zeros(ranks).astype(jnp.int32),
            gate=zeros(ranks),
            wanted=zeros(ranks).astype(bool),
            valid=zeros().astype(bool),
            probabilities=zeros(columns(moe)),
            logits=zeros(columns(moe)),
            smooth_load=zeros(moe.num_experts),
            scores=zeros(columns(moe)),
            bias=jnp.zeros(columns(moe)),
            penalty=jnp.zeros(()),
        )
        return total(functions, Observed(routing, routing.wanted, 1))

    sums = jax.eval_shape(of_blank_routing)
    return sum(math.prod(value.shape) for value in sums.values())


def _evidence(moe: MoEConfig) -> list[SumOf]:
    return [BIAS_UPDATES[moe.bias_update].evidence] if ROUTERS[moe.router].has_balance_bias(moe) else []


def _functions(moe: MoEConfig) -> list[SumOf]:
    functions = [function for measure in MEASURES.values() for function in measure.sums]
    options = ROUTERS[moe.router].options
    of_some_routers = frozenset().union(*(router.options for router in ROUTERS.values()))
    for name, loss in active_losses(moe).items():
        if loss.always_shown or name in options or name not in of_some_routers:
            functions += loss.sums(moe)
    return functions
