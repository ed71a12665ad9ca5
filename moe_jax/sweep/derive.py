"""Derives fields from the swept ones, so that cells stay comparable. The functions make values for `Sweep.derive`."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import ml_collections

from moe_jax.config import rules
from moe_jax.config.layers import moe_segments
from moe_jax.config.schema import RunConfig
from moe_jax.moe.dispatchers import dispatcher_of
from moe_jax.parallel.mesh import TOKEN_AXES
from moe_jax.resolve import ConfigError, check_field, resolve
from moe_jax.resolve.counting import count
from moe_jax.sweep.design import Derivation, Point, plain


def with_fields(base: ml_collections.ConfigDict, point: Point) -> ml_collections.ConfigDict:
    """A copy of `base` with the fields of `point`, whatever their types: `resolve` checks them."""
    return ml_collections.ConfigDict(tree_with(base.to_dict(), point), type_safe=False)


def tree_with(tree: Mapping[str, Any], point: Point) -> dict[str, Any]:
    """`with_fields` of a config as nested dicts. It shares what does not change with `tree`, which makes it cheap."""
    changed = dict(tree)
    for name, value in point.items():
        section, _, field = name.rpartition(".")
        if section:
            changed[section] = {**changed.get(section, {}), field: value}
        else:
            changed[field] = value
    return changed


def fixed_group(min_slots: int = 32) -> Derivation:
    """One `moe.group_size` for all cells: the smallest power of two with which each has C >= `min_slots` in training.

    Drops depend on the group, so a sweep that lets it vary compares two things at once; and with few slots an expert
    drops tokens however well the router balances. Raises ConfigError unless `min_slots` is a whole positive number.
    """
    min_slots = plain(min_slots)
    _whole_positive("fixed_group: min_slots", min_slots)

    def derive(base: ml_collections.ConfigDict, points: list[Point]) -> list[Point]:
        tree = base.to_dict()
        runs = [run for run in (_resolved(tree, point) for point in points) if run and run.moe.num_experts]
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
    FLOPs per token. The router counts too, so that many experts are paid for with narrower ones. Raises ConfigError
    for a `to` without fields' names, or a `multiple_of` that is no whole positive number.
    """
    return _width("equal_flops", to, "flops_per_token", multiple_of)


def equal_total_params(to: Point, multiple_of: int = 1) -> Derivation:
    """Like `equal_flops`, for the number of parameters: more experts, each smaller."""
    return _width("equal_total_params", to, "total_params", multiple_of)


def _width(caller: str, to: Point, measure: str, multiple_of: int) -> Derivation:
    multiple_of = plain(multiple_of)
    _whole_positive(f"{caller}: multiple_of", multiple_of)
    if not isinstance(to, Mapping):
        raise ConfigError(f"{caller}: to={to!r} is no dict of fields: give one, such as {{'moe.num_experts': 0}}")

    def derive(base: ml_collections.ConfigDict, points: list[Point]) -> list[Point]:
        for name in to:
            check_field(name)
        tree = base.to_dict()
        goal, refused, derived = _measured(tree, plain(to)), [], []
        known: dict[tuple, Point] = {}  # many points differ in their training alone
        for point in points:
            run = _resolved(tree, point)
            if run is None:  # found and named when the cells are checked
                derived.append(point)
                continue
            sizes = (run.task, run.model, run.attention, run.moe, run.data)
            try:
                if sizes not in known:
                    known[sizes] = _nearest(tree, point, run, goal)
                derived.append({**point, **known[sizes]})
            except ConfigError as error:
                refused.append(str(error))
        if refused:
            raise ConfigError("; ".join(refused))
        return derived

    def _nearest(tree: Mapping[str, Any], point: Point, run: RunConfig, goal: int) -> Point:
        field = "moe.d_ff" if run.moe.num_experts else "model.d_ff"
        one, two = (_measured(tree, {**point, field: n * multiple_of}) for n in (1, 2))  # linear in the width
        widths = round(1 + (goal - one) / (two - one))
        if widths < 1:
            raise ConfigError(
                f"{point} has {measure}={one} at {field}={multiple_of}, more than the {goal} that all cells are to "
                "have: leave it out, or give it less elsewhere"
            )
        return {field: widths * multiple_of}

    def _measured(tree: Mapping[str, Any], point: Point) -> int:
        return getattr(count(resolve(tree_with(tree, {**point, **_ANY_DEVICE}))), measure)

    return derive


def _whole_positive(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{name}={value!r} is no whole number: give one")
    rules.positive(name, value)


_ANY_DEVICE = {  # what counts do not depend on, and the base config may have set for other devices or groups
    "mesh.data": 1, "mesh.fsdp": 1, "mesh.expert": 1, "mesh.tensor": 1, "moe.group_size": 1, "moe.exchange_chunks": 1,
}  # fmt: skip


def _resolved(tree: Mapping[str, Any], point: Point) -> RunConfig | None:
    """The run of the point on one device; None where it cannot run."""
    try:
        return resolve(tree_with(tree, {**point, **_ANY_DEVICE}))
    except ConfigError:
        return None


def _tokens(run: RunConfig) -> int:
    """The number of tokens in a micro-batch."""
    return run.data.batch_size // run.train.accumulate * run.data.sequence_length


def _slots(run: RunConfig, group_size: int) -> int:
    """The slots of an expert, in the MoE layer where they are fewest."""
    slots = lambda moe: dispatcher_of(dataclasses.replace(moe, group_size=group_size)).capacity()
    return min(slots(part.moe) for part in moe_segments(run))
