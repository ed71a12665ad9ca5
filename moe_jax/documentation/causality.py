"""Do later tokens change what earlier ones get? Every router, dispatcher and drop order is measured by changing them.

    python -m moe_jax.documentation.causality

prints the table, with what the registries promise (`Router.causal`, `DropOrder.causal`) beside what is measured.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from moe_jax.config.schema import MeshConfig, MoEConfig
from moe_jax.moe.context import Context
from moe_jax.moe.layer import MoELayer
from moe_jax.moe.plan import DROP_ORDERS
from moe_jax.moe.routers import ROUTERS
from moe_jax.parallel.mesh import make_mesh
from moe_jax.parallel.sharding import fan_in_init
from moe_jax.report.markdown import rows

GROUPS, TOKENS, D_MODEL, EXPERTS, VOCABULARY = 8, 64, 8, 4, 97
TIGHT = 0.5  # capacity factor at which half of all choices are dropped
ROUNDING = 2e-6  # of the largest number of a layer's output


class Case(NamedTuple):
    """One way to route."""

    router: str
    top_k: int
    drop_order: str
    dispatcher: str

    @property
    def causal(self) -> bool:
        """Whether the registries promise causality in training."""
        return ROUTERS[self.router].causal and DROP_ORDERS[self.drop_order].causal(self.top_k)

    @property
    def causal_in_evaluation(self) -> bool:
        """Whether the registries promise causality in evaluation."""
        return ROUTERS[self.router].causal_in_evaluation and DROP_ORDERS[self.drop_order].causal(self.top_k)

    def config(self, capacity_factor: float = TIGHT) -> MoEConfig:
        """A small layer, with jitter in training if the router has that option."""
        router = ROUTERS[self.router]
        fields = {
            "num_experts": EXPERTS,
            "d_ff": 8,
            "activation": "relu",
            "group_size": TOKENS,
            "capacity_factor": capacity_factor,
            "eval_capacity_factor": capacity_factor,
            "jitter": 0.1 if "jitter" in router.options else 0.0,
            "top_p": 1.0 if "top_p" in router.options else MoEConfig.top_p,  # every token takes K experts
            **router.fixed_fields,
        }
        return MoEConfig(**{**fields, **self._asdict()})


class Leak(NamedTuple):
    """Fractions of the first half's tokens whose output changes when the second half is replaced."""

    training: float
    evaluation: float
    dropped: float  # fraction of choices without a slot in training; where it is 0, drop orders show nothing


def cases() -> Iterator[Case]:
    """Every registered router in every drop order and with every dispatcher that it allows.

    K is the one that the router requires, or each of 1 and 2 that it can have.
    """
    for name, router in ROUTERS.items():
        fixed = router.fixed_fields
        for top_k in (router.required_top_k,) if router.required_top_k else range(router.least_top_k, 3):
            for order in [str(fixed["drop_order"])] if "drop_order" in fixed else DROP_ORDERS:
                for dispatcher in router.dispatchers:
                    if dispatcher == "dropless" and order != "position":
                        continue  # it drops nothing, in no order
                    yield Case(name, top_k, order, dispatcher)


@functools.cache
def measure(moe: MoEConfig) -> Leak:
    """Routes random tokens twice with the same noise; the second half of each group is replaced the second time."""
    layer = MoELayer(D_MODEL, moe, fan_in_init(1.0), nnx.Rngs(params=0))
    graphdef, weights = nnx.split(layer)

    def both(weights: nnx.State, x: Float[Array, "G T D"], ids: Int[Array, "G T"]):
        layer = nnx.merge(graphdef, weights)
        context = Context(ids, jnp.ones(ids.shape, bool), jax.random.split(jax.random.key(0), GROUPS), jnp.int32(0))
        y, sums = layer(x, context, train=True)
        evaluated, _ = layer(x, context._replace(keys=None), train=False)
        return y, evaluated, jnp.sum(sums["dropped_by_rank"]) / jnp.sum(sums["wanted_by_rank"])

    replicated = PartitionSpec()
    run = jax.jit(jax.shard_map(both, mesh=make_mesh(MeshConfig()), in_specs=replicated, out_specs=replicated))
    x, ids = _tokens(seed=0)
    other_x, other_ids = _tokens(seed=1)
    first = np.arange(TOKENS) < TOKENS // 2
    *before, dropped = run(weights, x, ids)
    *after, _ = run(weights, np.where(first[:, None], x, other_x), np.where(first, ids, other_ids))
    training, evaluation = (float(np.mean(_differ(a, b)[:, first])) for a, b in zip(before, after, strict=True))
    return Leak(training, evaluation, float(dropped))


def table() -> list[str]:
    """The lines of a Markdown table of all cases."""
    header = ["router", "K", "drop order", "dispatcher", "said to be causal", "leak in training", "in evaluation"]
    body = []
    for case in cases():
        leak = measure(case.config())
        said = "yes" if case.causal else "no"
        body.append([*map(str, case), said, f"{leak.training:.0%}", f"{leak.evaluation:.0%}"])
    return rows(header, body)


def _tokens(seed: int) -> tuple[Float[np.ndarray, "G T D"], Int[np.ndarray, "G T"]]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(GROUPS, TOKENS, D_MODEL)).astype(np.float32)
    return x, rng.integers(VOCABULARY, size=(GROUPS, TOKENS)).astype(np.int32)


def _differ(a: Float[Array, "G T D"], b: Float[Array, "G T D"]) -> Bool[np.ndarray, "G T"]:
    """Where vectors differ by more than rounding: a product's blocks, and so its sums, depend on where a row stands."""
    one, other = np.asarray(a), np.asarray(b)
    return np.any(np.abs(one - other) > ROUNDING * np.abs(one).max(), axis=-1)


if __name__ == "__main__":
    print("\n".join(table()))
