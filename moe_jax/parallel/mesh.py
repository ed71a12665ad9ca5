"""The device mesh: four named axes, always all of them, so that one device runs the same program as a thousand."""

import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

from moe_jax.config.schema import MeshConfig

DATA, FSDP, EXPERT, TENSOR = AXES = ("data", "fsdp", "expert", "tensor")
TOKEN_AXES = (DATA, FSDP, EXPERT)  # over which the batch is sharded; along TENSOR tokens are replicated


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of `devices` (default: the first of this job's) with the sizes of `config`, all of them positive."""
    shape = tuple(getattr(config, axis) for axis in AXES)
    devices = (jax.devices() if devices is None else devices)[: math.prod(shape)]
    return jax.make_mesh(shape, AXES, (AxisType.Auto,) * len(AXES), devices=devices)
