"""The device mesh: four named axes, always all of them, so that one device runs the same program as a thousand."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from moe_jax.config.schema import MeshConfig

DATA, FSDP, EXPERT, TENSOR = AXES = ("data", "fsdp", "expert", "tensor")
ACROSS_NODES, INSIDE_NODES = "expert:nodes", "expert:inside"  # parts of EXPERT, where it spans nodes
TOKEN_AXES = (DATA, FSDP, EXPERT)  # over which the batch is sharded; along TENSOR tokens are replicated


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of `devices` (default: the first of this job's) with the sizes of `config`, all of them positive.

    Neighbours along `tensor`, then along `expert`, are close: they come from one host where the devices are listed by
    host (GPU), and follow the wires of the torus (TPU). Several TPU slices are laid along `data`, then `fsdp`.

    Raises ValueError where there are too few devices, or `expert` or `tensor` would have to span slices.
    """
    shape = tuple(getattr(config, axis) for axis in AXES)
    devices = list(jax.devices() if devices is None else devices)
    if math.prod(shape) > len(devices):
        raise ValueError(f"a mesh of {config} needs {math.prod(shape)} devices and there are {len(devices)}")
    grid = _grid(shape, devices[: math.prod(shape)])
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _grid(shape: tuple[int, ...], devices: list) -> np.ndarray:
    """`devices` as an array of `shape`."""
    if devices[0].platform != "tpu":
        return np.array(devices).reshape(shape)
    slices = len({getattr(device, "slice_index", 0) for device in devices})  # one slice may not number itself
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    across = _across_slices(shape, slices)
    within = [size // count for size, count in zip(shape, across, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)


def _across_slices(shape: tuple[int, ...], slices: int) -> tuple[int, ...]:
    """How many slices each axis spans: as many as divide `data`, the rest along `fsdp`."""
    data, fsdp = shape[:2]
    along_data = math.gcd(data, slices)
    along_fsdp = slices // along_data
    if fsdp % along_fsdp:
        raise ValueError(
            f"mesh.data={data} and mesh.fsdp={fsdp} do not divide over {slices} slices, and experts do not span them: "
            f"make mesh.data a multiple of {slices}"
        )
    return (along_data, along_fsdp, 1, 1)
