"""What a router costs: a layer's training pass with each file of `configs/routers/`, over that with plain top-k.

A file gives the router, its options and the weights of its auxiliary losses; the sizes are those below. The pass is
the one of training: it goes forward and backward, takes the losses from the functions of the training step and computes
the routing statistics. Whatever changes from step to step is an argument, since XLA would fold a part of a hash or of a
draw away if it were constant.
"""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, PyTree

from moe_jax.benchmarks.timing import Ratio, paired_ratio, paired_times
from moe_jax.config.schema import MeshConfig, MoEConfig
from moe_jax.moe.context import Context
from moe_jax.moe.layer import MoELayer
from moe_jax.moe.losses import auxiliary_losses, weighted
from moe_jax.moe.routers import ROUTERS
from moe_jax.parallel.mesh import make_mesh
from moe_jax.parallel.sharding import fan_in_init
from moe_jax.resolve import resolve
from moe_jax.resolve.router_configs import router_configs

REFERENCE, CONTROL = "top_k", "top_k again"  # the same routing twice, so that their ratio shows the noise
VOCABULARY = 1024


class Sizes(NamedTuple):
    """Sizes of a layer, at capacity factor 1, and of its input, whose tokens are all one group."""

    d_model: int = 256
    d_ff: int = 1024
    sequences: int = 32
    length: int = 128


SIZES = Sizes()
EXPERTS = (8, 64)


class Comparison(NamedTuple):
    """Routers that take turns with each other, with the reference and with its control."""

    name: str
    top_k: int
    routers: tuple[str, ...]


def comparisons(configs: Mapping[str, MoEConfig]) -> list[Comparison]:
    """The comparisons, which have every file at least once.

    Top-1 has the routers by token choice whose file has K = 1, and top-2 has all that can have K = 2. A router that
    fills its slots (expert choice, Soft MoE) takes so much memory that it slows what comes next, so each of them has a
    comparison of its own.
    """
    fills_slots = {name: ROUTERS[moe.router].fills_slots for name, moe in configs.items()}
    token_choice = {name: moe for name, moe in configs.items() if not fills_slots[name]}
    can_be_top_2 = lambda moe: ROUTERS[moe.router].required_top_k != 1
    return [
        Comparison("top-1", 1, tuple(name for name, moe in token_choice.items() if moe.top_k == 1)),
        Comparison("top-2", 2, tuple(name for name, moe in token_choice.items() if can_be_top_2(moe))),
        *(Comparison(name, 2, (name,)) for name in configs if fills_slots[name]),
    ]


def run(repeats: int) -> list[dict[str, Any]]:
    """Runs all comparisons with all numbers of experts and prints each comparison as it is done."""
    print("| comparison | router |" + "".join(f" E {experts} |" for experts in EXPERTS))
    print("|---" * (len(EXPERTS) + 2) + "|")
    rows: list[dict[str, Any]] = []
    for comparison in comparisons(router_configs()):
        columns = [compare(comparison, experts, repeats) for experts in EXPERTS]
        for row in zip(*columns, strict=True):
            cells = " | ".join(str(Ratio(**cell["ratio"])) for cell in row)
            if row[0]["router"] != REFERENCE:
                print(f"| {comparison.name} | {row[0]['router']} | {cells} |", flush=True)
        rows += itertools.chain(*columns)
    return rows


def compare(comparison: Comparison, experts: int, repeats: int) -> list[dict[str, Any]]:
    """A row for each router, with its time as a ratio to the reference's and in milliseconds."""
    calls = {name: compiled_pass(moe, SIZES) for name, moe in routings(comparison, experts)}
    times = paired_times(calls, repeats)
    return [
        {
            "comparison": comparison.name,
            "num_experts": experts,
            "top_k": comparison.top_k,
            "router": name,
            "ratio": paired_ratio(times, name, REFERENCE)._asdict(),
            "milliseconds": 1e3 * statistics.median(times[name]),
        }
        for name in calls
    ]


def routings(comparison: Comparison, experts: int, sizes: Sizes = SIZES) -> Iterator[tuple[str, MoEConfig]]:
    """(name, settings) of the layers to compare: the reference, its control, then the routers."""
    plain = MoEConfig(router="top_k", normalize_gates=comparison.top_k > 1)
    configs = {REFERENCE: plain, CONTROL: plain} | {name: router_configs()[name] for name in comparison.routers}
    for name, moe in configs.items():
        yield name, resized(moe, experts, comparison.top_k, sizes)


def resized(moe: MoEConfig, experts: int, top_k: int, sizes: Sizes) -> MoEConfig:
    """The routing of `moe` in a layer of these sizes.

    Expert groups have at least two experts, and the share of groups that a token may use stays, rounded up.
    """
    groups = min(moe.expert_groups, experts // 2)
    fields = dataclasses.asdict(moe) | {
        "num_experts": experts,
        "top_k": top_k,
        "target_experts": moe.target_experts * top_k / moe.top_k,
        "d_ff": sizes.d_ff,
        "activation": "relu",
        "fine_grained": 1,
        "expert_groups": groups,
        "top_groups": math.ceil(moe.top_groups * groups / moe.expert_groups),
        "group_size": sizes.sequences * sizes.length,
        "capacity_factor": 1.0,
        "eval_capacity_factor": 1.0,
    }
    data = {"batch_size": sizes.sequences, "sequence_length": sizes.length}
    return resolve({"moe": fields, "data": data}).moe


def training_pass(moe: MoEConfig, sizes: Sizes) -> tuple[Callable, tuple[PyTree, ...]]:
    """A function with its arguments; it returns (loss, routing sums) and the gradients of the layer's weights and of x.

    The loss is the square of the output, which stands in for the cross-entropy, plus the auxiliary losses of `moe`.
    """
    layer = MoELayer(sizes.d_model, moe, fan_in_init(1.0), nnx.Rngs(params=0))
    graphdef, *states = nnx.split(layer, nnx.Param, ...)
    params, balance_bias = states
    shape = (sizes.sequences, sizes.length)
    x = jax.random.normal(jax.random.key(1), (*shape, sizes.d_model))
    ids = jax.random.randint(jax.random.key(2), shape, 0, VOCABULARY)
    keys = jax.random.split(jax.random.key(3), 1)  # one group

    def on_device(
        params: PyTree, x: Float[Array, "B L D"], balance_bias: PyTree, tokens: tuple[Array, Array, Array, Array]
    ):
        return nnx.merge(graphdef, params, balance_bias)(x, Context(*tokens), True)

    on_one_device = jax.shard_map(on_device, mesh=make_mesh(MeshConfig()), in_specs=P(), out_specs=P())

    def loss(*args: PyTree):
        y, sums = on_one_device(*args)
        return jnp.sum(jnp.square(y)) + weighted(moe, auxiliary_losses(moe, [sums])), sums

    tokens = (ids, jnp.ones(shape, bool), keys, jnp.int32(0))
    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), (params, x, balance_bias, tokens)


def compiled_pass(moe: MoEConfig, sizes: Sizes) -> Callable[[], PyTree]:
    """A call of the compiled `training_pass`."""
    function, args = training_pass(moe, sizes)
    compiled = jax.jit(function).lower(*args).compile()
    return lambda: compiled(*args)
