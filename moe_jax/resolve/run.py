"""From a config file's ConfigDict to frozen dataclasses, or to one line that names field, value and remedy."""

import dataclasses
import difflib
import functools
import math
from collections.abc import Mapping
from typing import Any

import ml_collections

from moe_jax.config import rules
from moe_jax.config.rules import ConfigError
from moe_jax.config.schema import MoEConfig, RunConfig, flatten
from moe_jax.data import checks as data_checks
from moe_jax.models import checks as model_checks
from moe_jax.moe import checks as moe_checks
from moe_jax.moe.routers import ROUTERS
from moe_jax.optim import checks as optim_checks
from moe_jax.parallel import checks as mesh_checks
from moe_jax.tasks import checks as task_checks


def resolve(config: ml_collections.ConfigDict | Mapping[str, Any], num_devices: int = 1) -> RunConfig:
    """Checks `config` and fills in what it leaves to be derived (head_dim, expert sizes, mesh sizes of -1).

    Args:
      config: a (possibly partial) tree of fields, as `default_config()` returns it.
      num_devices: devices that the mesh has to cover.

    Raises:
      ConfigError: on the first field that is unknown, of the wrong type, or impossible.
    """
    tree = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
    given = run = _build(RunConfig, tree, prefix="")
    try:
        run = _derive(given, num_devices)
        _check(run, num_devices)
    except ConfigError as error:
        message = str(error)
        if run.moe.num_experts != given.moe.num_experts and message.startswith("moe."):
            message += f" (experts as split by moe.fine_grained={given.moe.fine_grained})"
        raise ConfigError(message) from None
    return run


def _check(run: RunConfig, num_devices: int) -> None:
    """Raises ConfigError on the first condition that does not hold: numbers, then room by room, then the mesh."""
    for name, value in flatten(run).items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise ConfigError(f"{name}={value} is not finite: give a finite number")
    rules.not_negative("seed", run.seed)
    if run.seed >= 2**32:
        raise ConfigError(f"seed={run.seed} does not fit into 32 bits: give less than {2**32}")
    rules.each(run, "log.every checkpoint.every checkpoint.keep", rules.positive)
    rules.each(run, "eval.every eval.batches", rules.not_negative)
    for room in (task_checks, data_checks, optim_checks, mesh_checks, model_checks, moe_checks):
        room.check(run)
    mesh_checks.check_sizes(run.mesh, model_checks.sizes(run))
    mesh_checks.check_devices(run.mesh, num_devices)


def restore(fields: Mapping[str, Any], num_devices: int = 1) -> RunConfig:
    """The resolved run that `schema.flatten` made `fields` of: there is nothing left to derive."""
    tree: dict[str, Any] = {}
    for name, value in fields.items():
        section, _, field = name.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[field] = value
    return resolve(tree, num_devices)


def check_field(name: str) -> None:
    """Raises ConfigError unless `name`, dotted, is a field of a run."""
    known = list(flatten(RunConfig()))
    fields = [field for field in known if field.startswith(f"{name}.")]
    if fields:
        raise ConfigError(f"{name} is a section, not a field: set one of its fields, as {fields[0]}")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        remedy = f"did you mean {near[0]}?" if near else "moe_jax/config/schema.py lists them all"
        raise ConfigError(f"{name} is not a field of a run: {remedy}")


def _build(cls: type, tree: Mapping[str, Any], prefix: str) -> Any:
    """An instance of dataclass `cls` from a tree of plain values; every value is checked against its default's type."""
    fields = _fields(cls)
    values = {}
    for name, value in tree.items():
        if name not in fields:
            check_field(f"{prefix}{name}")
            raise ConfigError(f"{prefix}{name} is the name of a field, not of a section: nest it, a level for each dot")
        default = fields[name].default
        if not dataclasses.is_dataclass(default):
            values[name] = _typed(f"{prefix}{name}", value, default, fields[name].type)
        elif isinstance(value, Mapping):
            values[name] = _build(type(default), value, f"{prefix}{name}.")
        else:
            raise ConfigError(f"{prefix}{name}={value!r} is a section, not a field: set {prefix}{name}.<field>")
    return cls(**values)


@functools.cache
def _fields(cls: type) -> dict[str, Any]:
    return {field.name: field for field in dataclasses.fields(cls)}


WIDE = ("seed", "data.max_bytes")  # whole numbers that may need more than 32 bits


def _typed(name: str, value: Any, default: Any, declared: Any) -> Any:
    """`value` as the type of `default`. Integers pass for floats, lists for tuples; nothing else is converted."""
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"{name} is larger than any float: give less than 1e308") from None
    if isinstance(default, tuple) and isinstance(value, tuple | list):
        element = declared.__args__[0]
        return tuple(_typed(f"{name}[{i}]", v, element(), element) for i, v in enumerate(value))
    if type(value) is not type(default):
        raise ConfigError(
            f"{name}={value!r} is of type {type(value).__name__}: give a value of type {type(default).__name__}"
        )
    if isinstance(value, int) and abs(value) >= 2**31 and name not in WIDE:
        shown = f"{name}={value}" if abs(value) < 10**30 else f"{name}, of {value.bit_length()} bits,"
        raise ConfigError(f"{shown} does not fit into 32 bits: give less than {2**31}")
    return value


def _derive(run: RunConfig, num_devices: int) -> RunConfig:
    model, moe = run.model, run.moe
    if model.head_dim == 0:
        rules.positive("model.d_model", model.d_model)
        rules.positive("model.num_heads", model.num_heads)
        rules.divides("model.num_heads", model.num_heads, "model.d_model", model.d_model)
        model = dataclasses.replace(model, head_dim=model.d_model // model.num_heads)
    moe = dataclasses.replace(moe, d_ff=moe.d_ff or model.d_ff, activation=moe.activation or model.activation)
    rules.positive("moe.fine_grained", moe.fine_grained)
    if moe.fine_grained > 1 and moe.num_experts:
        moe_checks.check_before_split(dataclasses.replace(run, moe=moe))
        moe = _fine_grained(moe)
    shared_d_ff = moe.shared_d_ff or moe.num_shared_experts * moe.d_ff
    moe = dataclasses.replace(moe, fine_grained=1, shared_d_ff=shared_d_ff)
    if moe.final_temperature and not moe.temperature_steps:
        moe = dataclasses.replace(moe, temperature_steps=run.train.steps)
    return dataclasses.replace(run, model=model, moe=moe, mesh=_complete_mesh(run.mesh, num_devices))


def _fine_grained(moe: MoEConfig) -> MoEConfig:
    """m times as many experts of 1 / m the size, of which a token visits m times as many (DeepSeekMoE, section 3.1):
    parameters and FLOPs stay.
    """
    m = moe.fine_grained
    router = ROUTERS.get(moe.router)
    if router is not None and router.required_top_k is not None:
        raise ConfigError(
            f"moe.fine_grained={m} with moe.router={moe.router!r}, which is top-{router.required_top_k}, where a token "
            f"is to visit {m} times as many experts: use moe.router='top_k'"
        )
    rules.divides("moe.fine_grained", m, "moe.d_ff", moe.d_ff)
    return dataclasses.replace(
        moe,
        d_ff=moe.d_ff // m,
        num_experts=m * moe.num_experts,
        top_k=m * moe.top_k,
        num_experts_by_layer=tuple(m * experts for experts in moe.num_experts_by_layer),
        top_k_by_layer=tuple(m * k for k in moe.top_k_by_layer),
    )


def _complete_mesh(mesh: Any, num_devices: int) -> Any:
    """Replaces the one mesh size of -1 by the devices that remain."""
    sizes = dataclasses.asdict(mesh)
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) > 1:
        raise ConfigError(
            f"mesh.{free[1]}=-1: only one mesh size can be -1, and mesh.{free[0]} is: give mesh.{free[1]} a number"
        )
    fixed = 1
    for name, size in sizes.items():
        if name not in free:
            rules.positive(f"mesh.{name}", size)
            fixed *= size
    if not free:
        return mesh
    if num_devices % fixed:
        raise ConfigError(
            f"mesh.{free[0]}=-1: the other axes take {fixed} devices, which does not divide the {num_devices} present: "
            f"make their product a divisor of {num_devices}"
        )
    return dataclasses.replace(mesh, **{free[0]: num_devices // fixed})
