"""A resolved configuration in words: what will be trained, how large it is, and what routing will drop at best."""

import warnings
from collections.abc import Iterator

import jax.numpy as jnp

from moe_jax.config.layers import moe_segments
from moe_jax.config.schema import MoEConfig, RunConfig, TrainConfig, flatten
from moe_jax.moe.dispatchers import dispatcher_name, dispatcher_of
from moe_jax.moe.levels import in_words
from moe_jax.moe.plan import DROP_ORDERS
from moe_jax.moe.routers import ROUTERS
from moe_jax.parallel.checks import token_shards
from moe_jax.resolve.counting import causal_flops_per_token, count


def describe(run: RunConfig) -> list[str]:
    """One line a fact: size and FLOPs, then each capacity that the run uses."""
    counts = count(run)
    lines = [
        f"parameters: {counts.total_params:,} in all, {counts.active_params:,} active for a token "
        f"({counts.embedding_params:,} of them embeddings)",
        f"FLOPs: {counts.flops_per_token:,} a token, forward and backward; {causal_flops_per_token(run):,} with the "
        "half of the scores that causal attention needs",
    ]
    for part in moe_segments(run):
        moe = part.moe
        lines += [
            f"MoE: {part.num_moe_layers} of {run.model.num_layers} layers, {moe.num_experts} experts, top {moe.top_k}, "
            f"groups of {moe.group_size} tokens",
            _capacity_line("training", moe, train=True),
            _capacity_line("evaluation", moe, train=False),
            *_exchange_lines(run, moe),
        ]
    return lines


def warn(run: RunConfig) -> None:
    """Warns of what is legal and probably not meant."""
    said = dict.fromkeys(line for part in moe_segments(run) for line in _doubts(part.moe))
    for line in (*_doubts_of_training(run.train), *said):
        warnings.warn(line, stacklevel=2)


def _doubts_of_training(train: TrainConfig) -> Iterator[str]:
    """What is probably not meant in the length and the rates of the run."""
    if train.warmup_steps >= train.steps > 1:
        reached = (train.steps - 1) / train.warmup_steps
        yield (
            f"train.warmup_steps={train.warmup_steps} is not over at train.steps={train.steps}: the last rate is "
            f"{reached:.0%} of train.learning_rate={train.learning_rate}; lower the one or raise the other"
        )


def _doubts(moe: MoEConfig) -> Iterator[str]:
    """What is probably not meant in a layer of these settings."""
    router, dispatcher = ROUTERS[moe.router], dispatcher_of(moe)
    if dispatcher.nominal_capacity() < 1:
        yield (
            f"moe.capacity_factor={dispatcher.factor()} gives less than one slot an expert and group before rounding: "
            f"raise moe.group_size={moe.group_size}"
        )
    trained, evaluated = dispatcher.experts_per_token(True), dispatcher.experts_per_token(False)
    if trained != evaluated:
        yield (
            f"moe.router={moe.router!r} fills all slots, so that a token has {float(trained):.2f} experts on average "
            f"in training and {float(evaluated):.2f} in evaluation: give both, and every layer, one capacity factor"
        )
    if not router.causal:
        causal = " or ".join(repr(name) for name, one in ROUTERS.items() if one.causal)
        when = " in training" if router.causal_in_evaluation else ""
        yield (
            f"moe.router={moe.router!r} lets later tokens change what earlier ones get{when}, in a causal model: "
            f"choose moe.router={causal}"
        )
    if not DROP_ORDERS[moe.drop_order].causal(moe.top_k):
        yield (
            f"moe.drop_order={moe.drop_order!r} lets later tokens take the slots of earlier ones, in a causal model: "
            "moe.drop_order='position' does not"
        )


def markdown(run: RunConfig) -> str:
    """The description and every field, for TensorBoard's text tab."""
    rows = [f"| {name} | `{value!r}` |" for name, value in flatten(run).items()]
    return "\n".join([*(f"- {line}" for line in describe(run)), "", "| field | value |", "|---|---|", *rows])


def _capacity_line(phase: str, moe: MoEConfig, train: bool) -> str:
    dispatcher = dispatcher_of(moe)
    if dispatcher_name(moe) == "dropless":
        return f"capacity in {phase}: an expert takes every token that chose it"
    drops = f"uniform random routing would drop {dispatcher.random_drop_fraction(train):.2%}"
    return (
        f"capacity in {phase}: C = {dispatcher.capacity(train)} slots an expert and group, factor "
        f"{dispatcher.factor(train)} (effective {dispatcher.effective_factor(train):.3f}); "
        f"{'nothing drops' if ROUTERS[moe.router].fills_slots else drops}"
    )


def _exchange_lines(run: RunConfig, moe: MoEConfig) -> Iterator[str]:
    """What a device has room for, where that is not said by the capacity, and what may drop for want of it."""
    if run.mesh.expert == 1 or not (moe.exchange_unique or dispatcher_name(moe) == "dropless"):
        return
    sequences = run.data.batch_size // run.train.accumulate // token_shards(run.mesh)
    tokens = sequences * run.data.sequence_length
    slots = 0
    if dispatcher_name(moe) != "dropless":
        slots = tokens // moe.group_size * dispatcher_of(moe).capacity()
    yield in_words(moe, run.mesh.expert, tokens, run.model.d_model * jnp.dtype(run.model.dtype).itemsize, slots)
