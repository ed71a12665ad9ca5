"""What a layer can use of the fields of `moe` that say how tokens cross the mesh."""

import math
from fractions import Fraction

from moe_jax.config.rules import ConfigError
from moe_jax.config.schema import MoEConfig, RunConfig
from moe_jax.moe.dispatchers import dispatcher_name, dispatcher_of
from moe_jax.moe.levels import GATHERING, balanced_rows
from moe_jax.parallel.checks import token_shards

SLOTS = ("auto", "all_to_all")  # the values of `moe.exchange` that dispatchers with slots have


def check_exchange(moe: MoEConfig, capacity_factor: str) -> None:
    """Raises ConfigError on the first field that the layer's dispatcher cannot use, or not so; `capacity_factor` is the
    field that gives it its training slots.
    """
    name = dispatcher_name(moe)
    if name == "dropless":
        _dropless(moe)
    else:
        _slots(moe, name)
        _chunks(moe, capacity_factor)
    if moe.exchange_nodes > 1 and not moe.exchange_unique:
        raise ConfigError(
            f"moe.exchange_nodes={moe.exchange_nodes} with moe.exchange_unique=False, which sends a token once for "
            "each of its experts: set moe.exchange_unique=True"
        )
    if moe.exchange_nodes > 1 and moe.exchange == "ragged":
        raise ConfigError(
            f"moe.exchange_nodes={moe.exchange_nodes} with moe.exchange='ragged', which is over all devices at once: "
            "use moe.exchange='all_to_all'"
        )


def _dropless(moe: MoEConfig) -> None:
    if moe.exchange_chunks > 1:
        raise ConfigError(
            f"moe.exchange_chunks={moe.exchange_chunks} has no effect with moe.dispatcher='dropless', which has no "
            "slots to cut: leave it at 1"
        )
    if moe.exchange not in GATHERING:
        return
    for field, value, unused in (
        ("exchange_unique", moe.exchange_unique, False),
        ("exchange_bound", moe.exchange_bound, 0),
        ("exchange_nodes", moe.exchange_nodes, 1),
    ):
        if value != unused:
            raise ConfigError(
                f"moe.{field}={value} has no effect with moe.exchange={moe.exchange!r} and moe.dispatcher='dropless', "
                f"where all devices get all tokens: leave it at {unused}, or use moe.exchange='all_to_all'"
            )


def _slots(moe: MoEConfig, name: str) -> None:
    if moe.exchange not in SLOTS:
        raise ConfigError(
            f"moe.exchange={moe.exchange!r} with moe.dispatcher={name!r}, whose slots are exchanged by "
            "all_to_all: use moe.exchange='all_to_all', or moe.dispatcher='dropless'"
        )
    if moe.exchange_unique and name != "capacity":
        raise ConfigError(
            f"moe.exchange_unique=True with moe.dispatcher={name!r}, which fills slots before it sends them: use "
            "moe.dispatcher='capacity' or 'dropless'"
        )
    if moe.exchange_bound and not moe.exchange_unique:
        raise ConfigError(
            f"moe.exchange_bound={moe.exchange_bound} with moe.exchange_unique=False and moe.dispatcher={name!r}, "
            "where moe.capacity_factor bounds what is sent: leave it at 0"
        )
    if moe.exchange_unique and moe.exchange_chunks > 1:
        raise ConfigError(
            f"moe.exchange_chunks={moe.exchange_chunks} with moe.exchange_unique=True, whose rows belong to no one "
            "expert's slots: use one or the other"
        )


def _chunks(moe: MoEConfig, capacity_factor: str) -> None:
    for name, train in ((capacity_factor, True), ("moe.eval_capacity_factor", False)):
        slots = dispatcher_of(moe).capacity(train)
        if moe.exchange_chunks > slots:
            raise ConfigError(
                f"moe.exchange_chunks={moe.exchange_chunks} is more than the C={slots} slots of {name}: lower it"
            )


def check_nodes(run: RunConfig) -> None:
    """Raises ConfigError unless `mesh.expert` is a number of nodes of two devices or more."""
    nodes, devices = run.moe.exchange_nodes, run.mesh.expert
    if nodes > 1 and (devices % nodes or devices == nodes):
        fitting = [size for size in range(2, devices) if devices % size == 0]
        use = f"one of {', '.join(map(str, fitting))}" if fitting else "1"
        raise ConfigError(
            f"moe.exchange_nodes={nodes} with mesh.expert={devices}, which is not so many nodes of two devices or "
            f"more: use {use}"
        )


def check_bound(moe: MoEConfig, run: RunConfig) -> None:
    """Raises ConfigError where `moe.exchange_bound` leaves less than a row from one device to another."""
    devices = moe.exchange_nodes if moe.exchange_nodes > 1 else run.mesh.expert
    if not moe.exchange_bound or devices == 1:
        return
    tokens = run.data.batch_size // run.train.accumulate // token_shards(run.mesh) * run.data.sequence_length
    balanced = balanced_rows(moe, devices, tokens)
    rows = Fraction(str(moe.exchange_bound)) * balanced
    if rows < 1:
        least = math.ceil(1000 / balanced) / 1000
        raise ConfigError(
            f"moe.exchange_bound={moe.exchange_bound} leaves {float(rows):.3g} rows from one device to another, where "
            f"balanced routing sends {float(balanced):.3g}: raise it to {least} or more, or give a "
            "device more tokens"
        )
