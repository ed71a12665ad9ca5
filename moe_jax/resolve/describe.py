"""A resolved configuration in words: what will be trained, how large it is, and what routing will drop at best."""

import warnings

from moe_jax.config.capacity import capacity, effective_factor, nominal_capacity, random_drop_fraction
from moe_jax.config.layers import moe_segments, num_moe_layers
from moe_jax.config.schema import MoEConfig, RunConfig, flatten
from moe_jax.moe.plan import DROP_ORDERS
from moe_jax.moe.router import columns
from moe_jax.moe.routers import ROUTERS
from moe_jax.resolve.counting import count


def describe(run: RunConfig) -> list[str]:
    """One line a fact: size and FLOPs, then each capacity that the run uses."""
    counts = count(run)
    lines = [
        f"parameters: {counts.total_params:,} in all, {counts.active_params:,} active for a token "
        f"({counts.embedding_params:,} of them embeddings)",
        f"FLOPs: {counts.flops_per_token:,} a token, forward and backward",
    ]
    for part in moe_segments(run):
        moe = part.moe
        lines += [
            f"MoE: {part.num_moe_layers} of {run.model.num_layers} layers, {moe.num_experts} experts, top {moe.top_k}, "
            f"groups of {moe.group_size} tokens",
            _capacity_line("training", moe.capacity_factor, moe),
            _capacity_line("evaluation", moe.eval_capacity_factor, moe),
        ]
    return lines


def warn(run: RunConfig) -> None:
    """Warns of what is legal and probably not meant."""
    moe = run.moe
    if not num_moe_layers(run):
        return
    for one in (part.moe for part in moe_segments(run)):
        if nominal_capacity(one.capacity_factor, one.top_k, one.group_size, one.num_experts) < 1:
            warnings.warn(
                f"moe.capacity_factor={one.capacity_factor} gives less than one slot an expert and group before "
                f"rounding: raise moe.group_size={one.group_size}",
                stacklevel=2,
            )
        trained, evaluated = _mean_slots(one, one.capacity_factor), _mean_slots(one, one.eval_capacity_factor)
        if ROUTERS[moe.router].fills_slots and trained != evaluated:
            warnings.warn(
                f"moe.router={moe.router!r} fills all slots, so that a token has {trained:.2f} experts on average in "
                f"training and {evaluated:.2f} in evaluation: give both, and every layer, one capacity factor",
                stacklevel=2,
            )
    if not ROUTERS[moe.router].causal:
        causal = " or ".join(repr(name) for name, router in ROUTERS.items() if router.causal)
        when = " in training" if ROUTERS[moe.router].causal_in_evaluation else ""
        warnings.warn(
            f"moe.router={moe.router!r} lets later tokens change what earlier ones get{when}, in a causal model: "
            f"choose moe.router={causal}",
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


def _slots(moe: MoEConfig, factor: float) -> int:
    return capacity(factor, moe.top_k, moe.group_size, moe.num_experts)


def _mean_slots(moe: MoEConfig, factor: float) -> float:
    """Slots for each token."""
    return _slots(moe, factor) * moe.num_experts / moe.group_size


def _capacity_line(phase: str, factor: float, moe: MoEConfig) -> str:
    shape = (moe.top_k, moe.group_size, moe.num_experts)
    slots = _slots(moe, factor)
    random_drops = random_drop_fraction(slots, moe.top_k, moe.group_size, columns(moe))
    drops = f"uniform random routing would drop {random_drops:.2%}"
    return (
        f"capacity in {phase}: C = {slots} slots an expert and group, factor {factor} (effective "
        f"{effective_factor(slots, *shape):.3f}); {'nothing drops' if ROUTERS[moe.router].fills_slots else drops}"
    )
