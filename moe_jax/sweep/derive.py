"""Derives fields from the swept ones, so that cells stay comparable. The functions make values for `Sweep.derive`."""

import dataclasses
import math

import ml_collections

from moe_jax.config.layers import moe_segments
from moe_jax.config.schema import RunConfig
from moe_jax.moe.dispatchers import dispatcher_of
from moe_jax.parallel.mesh import TOKEN_AXES
from moe_jax.resolve import ConfigError, check_field, resolve
from moe_jax.resolve.counting import count
from moe_jax.sweep.design import Derivation, Point


def with_fields(base: ml_collections.ConfigDict, point: Point) -> ml_collections.ConfigDict:
    """A copy of `base` with the fields of `point`, whatever their types: `resolve` checks them."""
    config = ml_collections.ConfigDict(base.to_dict(), type_safe=False)
    for name, value in point.items():
        section, _, field = name.rpartition(".")
        (config[section] if section else config)[field] = value
    return config


def fixed_group(min_slots: int = 32) -> Derivation:
    """One `moe.group_size` for all cells: the smallest power of two with which each has C >= `min_slots` in training.

    Drops depend on the group, so a sweep that lets it vary compares two things at once; and with few slots an expert
    drops tokens however well the router balances.
    """

    def derive(base: ml_collections.ConfigDict, points: list[Point]) -> list[Point]:
        runs = [run for run in (_resolved(base, point) for point in points) if run and run.moe.num_experts]
        if not runs:
            return points
        shards = math.prod(max(base.mesh[axis], 1) for axis in TOKEN_AXES)
        tokens = min(_tokens(run) for run in runs) // shards
        size = 1
        while any(_slots(run, size) < min_slots for run in runs):
            size *= 2
            if tokens % size:
                fewest = min(runs, key=lambda run: _slots(run, tokens))
                raise ConfigError(
                    f"no moe.group_size up to the {tokens} tokens of a device gives an expert {min_slots} slots at "
                    f"moe.num_experts={fewest.moe.num_experts}, moe.capacity_factor={fewest.moe.capacity_factor}: "
                    "raise data.batch_size, or leave such cells out"
                )
        return [{**point, "moe.group_size": size} for point in points]

    return derive


def equal_flops(to: Point, multiple_of: int = 1) -> Derivation:
    """Sets the hidden size of the feed-forward, dense or of each expert, to equal the FLOPs of another configuration.

    That is the base config with the fields `to`. Of the multiples of `multiple_of`, it takes the size with the nearest
    FLOPs per token. The router counts too, so that many experts are paid for with narrower ones.
    """
    return _width(to, "flops_per_token", multiple_of)


def equal_total_params(to: Point, multiple_of: int = 1) -> Derivation:
    """Like `equal_flops`, for the number of parameters: more experts, each smaller."""
    return _width(to, "total_params", multiple_of)


def _width(to: Point, measure: str, multiple_of: int) -> Derivation:
    def derive(base: ml_collections.ConfigDict, points: list[Point]) -> list[Point]:
        for name in to:
            check_field(name)
        goal, refused, derived = _measured(base, to), [], []
        for point in points:
            try:
                derived.append({**point, **_nearest(base, point, goal)})
            except ConfigError as error:
                refused.append(str(error))
        if refused:
            raise ConfigError("; ".join(refused))
        return derived

    def _nearest(base: ml_collections.ConfigDict, point: Point, goal: int) -> Point:
        run = _resolved(base, point)
        if run is None:
            return {}  # found and named when the cells are checked
        field = "moe.d_ff" if run.moe.num_experts else "model.d_ff"
        one, two = (_measured(base, {**point, field: n * multiple_of}) for n in (1, 2))  # linear in the width
        widths = round(1 + (goal - one) / (two - one))
        if widths < 1:
            raise ConfigError(
                f"{point} has {measure}={one} at {field}={multiple_of}, more than the {goal} that all cells are to "
                "have: leave it out, or give it less elsewhere"
            )
        return {field: widths * multiple_of}

    def _measured(base: ml_collections.ConfigDict, point: Point) -> int:
        return getattr(count(resolve(with_fields(base, {**point, **_ANY_DEVICE}))), measure)

    return derive


_ANY_DEVICE = {  # what counts do not depend on, and the base config may have set for other devices or groups
    "mesh.data": 1, "mesh.fsdp": 1, "mesh.expert": 1, "mesh.tensor": 1, "moe.group_size": 1, "moe.exchange_chunks": 1,
}  # fmt: skip


def _resolved(base: ml_collections.ConfigDict, point: Point) -> RunConfig | None:
    """The run of the point on one device; None where it cannot run."""
    try:
        return resolve(with_fields(base, {**point, **_ANY_DEVICE}))
    except ConfigError:
        return None


def _tokens(run: RunConfig) -> int:
    """The number of tokens in a micro-batch."""
    return run.data.batch_size // run.train.accumulate * run.data.sequence_length


def _slots(run: RunConfig, group_size: int) -> int:
    """The slots of an expert, in the MoE layer where they are fewest."""
    slots = lambda moe: dispatcher_of(dataclasses.replace(moe, group_size=group_size)).capacity()
    return min(slots(part.moe) for part in moe_segments(run))
