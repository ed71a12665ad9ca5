"""A resolved configuration in words: what will be trained, how large it is, and what routing will drop at best."""

import warnings

from moe_jax.config.capacity import capacity, effective_factor, nominal_capacity, random_drop_fraction
from moe_jax.config.counting import count
from moe_jax.config.layers import num_moe_layers
from moe_jax.config.schema import RunConfig, flatten
from moe_jax.moe.plan import DROP_ORDERS
from moe_jax.moe.router import ROUTERS


def describe(run: RunConfig) -> list[str]:
    """One line a fact: size and FLOPs, then each capacity that the run uses."""
    counts = count(run)
    lines = [
        f"parameters: {counts.total_params:,} in all, {counts.active_params:,} active for a token "
        f"({counts.embedding_params:,} of them embeddings)",
        f"FLOPs: {counts.flops_per_token:,} a token, forward and backward",
    ]
    if num_moe_layers(run):
        moe = run.moe
        lines.append(
            f"MoE: {num_moe_layers(run)} of {run.model.num_layers} layers, {moe.num_experts} experts, top {moe.top_k}, "
            f"groups of {moe.group_size} tokens"
        )
        lines += [
            _capacity_line("training", moe.capacity_factor, run),
            _capacity_line("evaluation", moe.eval_capacity_factor, run),
        ]
    return lines


def warn(run: RunConfig) -> None:
    """Warns of what is legal and probably not meant."""
    moe = run.moe
    if not num_moe_layers(run):
        return
    shape = (moe.top_k, moe.group_size, moe.num_experts)
    if nominal_capacity(moe.capacity_factor, *shape) < 1:
        warnings.warn(
            f"moe.capacity_factor={moe.capacity_factor} gives less than one slot an expert and group before rounding: "
            f"raise moe.group_size={moe.group_size}",
            stacklevel=2,
        )
    if not ROUTERS[moe.router].causal:
        causal = " or ".join(repr(name) for name, router in ROUTERS.items() if router.causal)
        warnings.warn(
            f"moe.router={moe.router!r} lets later tokens change what earlier ones get, in a causal model: choose "
            f"moe.router={causal}",
            stacklevel=2,
        )
    if not DROP_ORDERS[moe.drop_order].causal(moe.top_k):
        warnings.warn(
            f"moe.drop_order={moe.drop_order!r} lets later tokens take the slots of earlier ones, in a causal model: "
            "moe.drop_order='position' does not",
            stacklevel=2,
        )


def markdown(run: RunConfig) -> str:
    """The description and every field, for TensorBoard's text tab."""
    rows = [f"| {name} | `{value!r}` |" for name, value in flatten(run).items()]
    return "\n".join([*(f"- {line}" for line in describe(run)), "", "| field | value |", "|---|---|", *rows])


def _capacity_line(phase: str, factor: float, run: RunConfig) -> str:
    shape = (run.moe.top_k, run.moe.group_size, run.moe.num_experts)
    slots = capacity(factor, *shape)
    drops = f"uniform random routing would drop {random_drop_fraction(slots, *shape):.2%}"
    return (
        f"capacity in {phase}: C = {slots} slots an expert and group, factor {factor} (effective "
        f"{effective_factor(slots, *shape):.3f}); {'nothing drops' if ROUTERS[run.moe.router].fills_slots else drops}"
    )
