"""What expert parallelism costs: eight devices against one on the same work, and more experts for the same work."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from moe_jax.benchmarks.layer import LayerCase, build, expert_matmuls, whole_layer
from moe_jax.benchmarks.timing import median_ratio, paired_times
from moe_jax.config.schema import MeshConfig, MoEConfig
from moe_jax.moe.context import plain_context
from moe_jax.moe.layer import MoELayer
from moe_jax.moe.losses import balance_loss
from moe_jax.parallel.collectives import sum_over
from moe_jax.parallel.mesh import TOKEN_AXES, make_mesh
from moe_jax.parallel.sharding import fan_in_init, shardings, spec_of, weight_specs

MESHES = (
    MeshConfig(expert=8),
    MeshConfig(data=2, expert=4),
    MeshConfig(fsdp=2, expert=2, tensor=2),
    MeshConfig(fsdp=8),
)
EXPERTS = (8, 16, 32, 64, 128)
GROUP, D_MODEL, D_FF = 1024, 256, 1024


def run(repeats: int) -> list[dict[str, Any]]:
    """Runs and prints both tables. Raises ValueError if there are fewer than eight devices."""
    if jax.device_count() < 8:
        raise ValueError(
            f"--suite=parallel needs 8 devices and there are {jax.device_count()}: set "
            "XLA_FLAGS=--xla_force_host_platform_device_count=8"
        )
    return [*_meshes(repeats), *_experts(repeats)]


def _meshes(repeats: int) -> list[dict[str, Any]]:
    """Time of a layer's training pass on eight groups of tokens on each mesh, over that on one device."""
    candidates = {"one device": layer_on(MeshConfig())} | {_name(mesh): layer_on(mesh) for mesh in MESHES}
    times = paired_times(candidates, repeats)
    print("| mesh | time / one device |\n|---|---|")
    rows = []
    for mesh in MESHES:
        ratio = median_ratio(times, _name(mesh), "one device")
        print(f"| {_name(mesh)} | {ratio:.2f} |", flush=True)
        rows.append({"mesh": _name(mesh), "ratio_to_one_device": ratio})
    return rows


def _experts(repeats: int) -> list[dict[str, Any]]:
    """Growth of the layer's time with E over that of its matmuls alone; tokens, group and capacity factor stay."""
    candidates = {}
    for experts in EXPERTS:
        layer, x = build(LayerCase(D_MODEL, D_FF, experts, 1, "uniform"), "capacity")
        candidates[f"layer {experts}"] = whole_layer(layer, x).call
        candidates[f"matmuls {experts}"] = expert_matmuls(layer, x).call
    times = paired_times(candidates, repeats)
    print("| E | layer / layer of 8 | matmuls / matmuls of 8 | growth of one over the other |\n|---|---|---|---|")
    rows = []
    for experts in EXPERTS:
        whole, matmuls = (median_ratio(times, f"{kind} {experts}", f"{kind} 8") for kind in ("layer", "matmuls"))
        print(f"| {experts} | {whole:.2f} | {matmuls:.2f} | {whole / matmuls:.2f} |", flush=True)
        rows.append({"num_experts": experts, "layer_growth": whole, "matmul_growth": matmuls})
    return rows


def layer_on(mesh_config: MeshConfig) -> Callable[[], PyTree]:
    """A call of a compiled training pass on eight groups, with the weights and tokens laid out on the mesh."""
    mesh = make_mesh(mesh_config)
    moe = MoEConfig(
        num_experts=8, top_k=2, router="top_k", d_ff=D_FF, activation="relu", capacity_factor=1.0, group_size=GROUP
    )
    graphdef, weights = nnx.split(MoELayer(D_MODEL, moe, fan_in_init(1.0), nnx.Rngs(params=0)))
    specs, tokens = weight_specs(mesh, weights), spec_of(mesh, TOKEN_AXES)

    def loss(weights, x):
        y, sums = nnx.merge(graphdef, weights)(x, plain_context(x.shape[:2]), True)
        total, sums = sum_over((jnp.sum(jnp.square(y)), sums), TOKEN_AXES)
        return total + balance_loss(sums)

    weights = jax.device_put(nnx.to_pure_dict(weights), shardings(mesh, specs))
    x = jax.random.normal(jax.random.key(1), (8, GROUP, D_MODEL))
    x = jax.device_put(x, NamedSharding(mesh, tokens))
    gradient = jax.grad(jax.shard_map(loss, mesh=mesh, in_specs=(specs, tokens), out_specs=P()), argnums=(0, 1))
    return partial(jax.jit(gradient).lower(weights, x).compile(), weights, x)


def _name(mesh: MeshConfig) -> str:
    sizes = {axis: getattr(mesh, axis) for axis in ("data", "fsdp", "expert", "tensor")}
    return " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1)
