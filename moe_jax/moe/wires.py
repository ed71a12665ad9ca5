"""What a layer's exchange sends, said before anything is compiled: the collective contract asks."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import jax

from moe_jax.config.schema import MoEConfig
from moe_jax.moe.delivery import Level
from moe_jax.moe.routers import ROUTERS
from moe_jax.parallel.mesh import ACROSS_NODES, EXPERT, INSIDE_NODES

PASSES = {"none": 1, "save_exchange": 1, "full": 2}  # times that the forward pass is made, by model.remat
TRANSPOSED = {"all-gather": "reduce-scatter", "reduce-scatter": "all-gather"}  # any other is its own


class Wire(NamedTuple):
    """Equal collectives of one layer and micro-batch, forward and backward."""

    kind: str  # as `Collective.kind`
    axis: str  # EXPERT, or the part of it that a level exchanges over
    rows: int  # in the whole buffer on one device
    columns: int  # numbers in a row; 0: D, those of a token
    dtype: Literal["tokens", "gates", "s32", "u32"]  # what travels
    runs: int
    padded_rows: int = 0  # in that of the all-to-all which stands for a ragged one on CPU; 0: it is not ragged


def slot_wires(moe: MoEConfig, groups: int, slots: int, remat: str) -> Iterator[Wire]:
    """Those of the buffers of a device's groups, of which every expert has so many slots for each."""
    passes, chunks = PASSES[remat], moe.exchange_chunks
    for chunk in range(chunks):
        rows = groups * moe.num_experts * (slots // chunks + (chunk < slots % chunks))
        yield Wire("all-to-all", EXPERT, rows, 0, "tokens", 2 * passes + 2)
        if moe.expert_dropout:
            yield Wire("all-to-all", EXPERT, rows, _noise_width(), "u32", passes)


def level_wires(moe: MoEConfig, levels: Sequence[Level], remat: str) -> Iterator[Wire]:
    """Those of `delivery.deliver`."""
    axes = [EXPERT] if len(levels) == 1 else [ACROSS_NODES, INSIDE_NODES]
    passes = PASSES[remat]
    for axis, level in zip(axes, levels, strict=True):
        if level.sends:
            yield Wire("all-gather", axis, level.devices, level.devices, "s32", passes)
            padded = level.devices * min(level.sends, level.rows)
            arriving = Wire("ragged-all-to-all", axis, level.rows, 0, "tokens", 1, padded)
            returning = arriving._replace(rows=level.sends)
        else:
            arriving = returning = Wire("all-to-all", axis, level.devices * level.rows, 0, "tokens", 1)
        # Where the forward pass is repeated, what came back is needed again only to multiply it with gates.
        yield from _rows(arriving, returning, passes, 1 if level.unique else passes)
        yield from _tables(moe, arriving, returning, level, passes)


def gather_wires(moe: MoEConfig, level: Level, tokens: int, remat: str) -> Iterator[Wire]:
    """Those of `delivery.deliver_to_all`, where a device has so many tokens."""
    arriving = Wire("all-gather", EXPERT, level.devices * tokens, 0, "tokens", 1)
    returning = arriving._replace(kind="reduce-scatter")
    yield from _rows(arriving, returning, PASSES[remat], 1)
    yield from _tables(moe, arriving, returning, level._replace(entries=moe.top_k), PASSES[remat])


def _rows(arriving: Wire, returning: Wire, passes_there: int, passes_back: int) -> Iterator[Wire]:
    """Tokens there, what the experts make of them back, and the gradients of both."""
    yield arriving._replace(runs=passes_there)
    yield returning._replace(runs=passes_back)
    yield arriving
    yield returning


def _tables(moe: MoEConfig, arriving: Wire, returning: Wire, level: Level, passes: int) -> Iterator[Wire]:
    """What goes beside rows: addresses, gates and their gradients, noise."""
    yield arriving._replace(columns=level.entries, dtype="s32", runs=passes)
    gates = arriving._replace(columns=level.entries, dtype="gates", runs=passes)
    if ROUTERS[moe.router].gates_input:  # those of the outputs are 1, and have no gradient
        yield gates
    if level.unique:
        yield gates
    if level.unique or ROUTERS[moe.router].gates_input:
        yield returning._replace(columns=level.entries, dtype="gates")
    if moe.expert_dropout:
        yield arriving._replace(columns=_noise_width(), dtype="u32", runs=passes)


def _noise_width() -> int:
    """Numbers in a key of JAX's random number generator."""
    return jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape[-1]
