"""What section `mesh` of a run has to satisfy, and which sizes a mesh has to divide: read off the rule table."""

import math
from collections.abc import Iterable
from typing import NamedTuple

from moe_jax.config.rules import ConfigError, divides, each, positive
from moe_jax.config.schema import MeshConfig, RunConfig
from moe_jax.parallel.mesh import AXES, TOKEN_AXES
from moe_jax.parallel.sharding import RULES

TOKEN_SHARDS = " * ".join(f"mesh.{axis}" for axis in TOKEN_AXES)


class Size(NamedTuple):
    """A dimension of a weight that has to come out even."""

    axis: str  # a logical axis of the rule table
    name: str  # how a user calls it: a field, or a product of fields
    value: int


def check(run: RunConfig) -> None:
    """Raises ConfigError unless every mesh axis has a device and the token axes divide a micro-batch."""
    each(run, " ".join(f"mesh.{axis}" for axis in AXES), positive)
    name, batch = micro_batch(run)
    divides(TOKEN_SHARDS, token_shards(run.mesh), name, batch)


def check_devices(mesh: MeshConfig, num_devices: int) -> None:
    """Raises ConfigError unless the mesh has `num_devices` devices."""
    devices = math.prod(getattr(mesh, axis) for axis in AXES)
    if devices != num_devices:
        sizes = " x ".join(f"mesh.{axis}={getattr(mesh, axis)}" for axis in AXES)
        raise ConfigError(
            f"{sizes} needs {devices} devices and {num_devices} are present: set one size to -1 to take what remains"
        )


def check_sizes(mesh: MeshConfig, sizes: Iterable[Size]) -> None:
    """Raises ConfigError on the first size that the mesh axes of its rule do not divide."""
    for axis, name, value in sizes:
        rule = RULES[axis]
        cuts = rule.split + rule.stored
        divides(" * ".join(f"mesh.{cut}" for cut in cuts), math.prod(getattr(mesh, cut) for cut in cuts), name, value)


def micro_batch(run: RunConfig) -> tuple[str, int]:
    """How a user calls the sequences of a micro-batch, and their number."""
    accumulate = run.train.accumulate
    name = "data.batch_size" if accumulate == 1 else "data.batch_size / train.accumulate"
    return name, run.data.batch_size // accumulate


def token_shards(mesh: MeshConfig) -> int:
    """Devices that tokens are sharded over."""
    return math.prod(getattr(mesh, axis) for axis in TOKEN_AXES)
