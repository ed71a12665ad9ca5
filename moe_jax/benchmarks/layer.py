"""What an MoE layer costs beyond its experts: its training pass over that of the expert matmuls on the same buffers."""

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, PyTree

from moe_jax.benchmarks.timing import median_ratio, paired_times
from moe_jax.config.schema import MeshConfig, MoEConfig
from moe_jax.moe.context import plain_context
from moe_jax.moe.dispatchers import dispatcher_of
from moe_jax.moe.layer import MoELayer
from moe_jax.moe.losses import balance_loss
from moe_jax.moe.measures import routing_stats
from moe_jax.parallel.mesh import make_mesh
from moe_jax.parallel.sharding import fan_in_init


class LayerCase(NamedTuple):
    """One shape: a group of `tokens`, all of them routed together, at capacity factor 1."""

    d_model: int
    d_ff: int
    num_experts: int
    top_k: int
    routing: str  # uniform, or zipf, where expert e is chosen in proportion to 1 / (e + 1) before drops
    tokens: int = 4096


CASES = tuple(
    LayerCase(*shape, routing)
    for shape in ((256, 1024, 8, 2), (512, 2048, 8, 2), (256, 1024, 64, 1))
    for routing in ("uniform", "zipf")
)


def build(case: LayerCase, dispatcher: str) -> tuple[MoELayer, Float[Array, "1 T D"]]:
    """A layer and its input. The input's first feature is 1, so that the router's first row acts as a bias."""
    moe = MoEConfig(
        num_experts=case.num_experts,
        top_k=case.top_k,
        router="switch" if case.top_k == 1 else "top_k",
        normalize_gates=case.top_k > 1,
        d_ff=case.d_ff,
        activation="relu",
        dispatcher=dispatcher,
        capacity_factor=1.0,
        group_size=case.tokens,
    )
    layer = MoELayer(case.d_model, moe, fan_in_init(1.0), nnx.Rngs(params=0))
    x = jax.random.normal(jax.random.key(1), (1, case.tokens, case.d_model)).at[..., 0].set(1)
    if case.routing == "zipf":
        bias = -jnp.log(1.0 + jnp.arange(case.num_experts))
        layer.router.weight[...] = layer.router.weight[...].at[0].set(bias)
    return layer, x


class Program(NamedTuple):
    """A compiled forward and backward pass, and a call of it with its arguments."""

    compiled: jax.stages.Compiled
    call: Callable[[], PyTree]


def whole_layer(layer: MoELayer, x: Float[Array, "1 T D"]) -> Program:
    """Computes the gradients of the layer's weights and of x."""
    graphdef, weights = nnx.split(layer)

    def loss(weights, x):
        y, sums = nnx.merge(graphdef, weights)(x, plain_context(x.shape[:2]), True)
        return jnp.sum(jnp.square(y)) + balance_loss(sums)

    return compiled_gradients(loss, weights, x)


def expert_matmuls(layer: MoELayer, x: Float[Array, "1 T D"]) -> Program:
    """Computes the gradients of the experts alone, on random buffers of the size that the layer fills."""
    moe = layer.moe
    graphdef, weights = nnx.split(layer.experts)
    slots = dispatcher_of(moe).capacity()
    buffers = jax.random.normal(jax.random.key(2), (1, moe.num_experts, slots, x.shape[-1]))

    def loss(weights, buffers):
        experts = nnx.merge(graphdef, weights)
        out = experts(buffers, experts.gathered(buffers.dtype))
        return jnp.sum(jnp.square(out))

    return compiled_gradients(loss, weights, buffers)


def _on_one_device(loss: Callable) -> Callable:
    mesh = make_mesh(MeshConfig())
    return jax.shard_map(loss, mesh=mesh, in_specs=(P(), P()), out_specs=P())


def compiled_gradients(loss: Callable, *args: PyTree) -> Program:
    """The gradients of both arguments of a loss, on one device."""
    compiled = jax.jit(jax.grad(_on_one_device(loss), argnums=(0, 1))).lower(*args).compile()
    return Program(compiled, lambda: compiled(*args))


def run(repeats: int) -> list[dict[str, Any]]:
    """Runs all cases and prints each as it is done."""
    print("| d | F | E | K | routing | dropped | capacity / experts | einsum / experts | experts, ms |")
    print("|---|---|---|---|---|---|---|---|---|")
    rows = []
    for case in CASES:
        row = run_case(case, repeats)
        print(
            f"| {case.d_model} | {case.d_ff} | {case.num_experts} | {case.top_k} | {case.routing} "
            f"| {row['dropped']:.1%} | {row['capacity_ratio']:.2f} | {row['einsum_ratio']:.2f} "
            f"| {row['experts_ms']:.0f} |",
            flush=True,
        )
        rows.append(row)
    return rows


def run_case(case: LayerCase, repeats: int) -> dict[str, Any]:
    """Times `case`: each dispatcher's whole layer as a multiple of the experts alone, and its temporary memory."""
    layer, x = build(case, "capacity")
    programs = {
        "experts": expert_matmuls(layer, x),
        "capacity": whole_layer(layer, x),
        "einsum": whole_layer(*build(case, "einsum")),
    }
    times = paired_times({name: program.call for name, program in programs.items()}, repeats)
    row = case._asdict() | {"dropped": _dropped(layer, x), "experts_ms": 1e3 * statistics.median(times["experts"])}
    for name, program in programs.items():
        memory = program.compiled.memory_analysis()
        row[f"{name}_ratio"] = median_ratio(times, name, "experts")
        row[f"{name}_temporary_bytes"] = memory.temp_size_in_bytes if memory else None
    return row


def _dropped(layer: MoELayer, x: Float[Array, "1 T D"]) -> float:
    graphdef, weights = nnx.split(layer)

    def forward(weights, x):
        _, sums = nnx.merge(graphdef, weights)(x, plain_context(x.shape[:2]), True)
        return sums

    return float(routing_stats(jax.jit(_on_one_device(forward))(weights, x))["dropped_fraction"])
