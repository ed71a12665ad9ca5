"""From the device groups of a collective, as a compiled program prints them, to the mesh axes they span.

Numbers in the groups are positions in the mesh (`mesh.devices` flattened), not device ids.
"""

import itertools
import math
import re

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

_LIST = re.compile(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}")
_PAIRS = re.compile(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")


def replica_groups(attributes: str, devices: int) -> Int[np.ndarray, "groups size"]:
    """The groups of one collective, from its attributes. The text has them in one of three forms.

        {{0,1},{2,3}}                        listed; {} is one group of all
        [2,2]<=[2,2]T(1,0)                   0, 1, 2 ... in shape [2,2], transposed, in groups of the rows
        mesh['data'=2,'expert'=2] {'expert'} along named axes

    Raises ValueError for any other.
    """
    if found := _MESH.search(attributes):
        return _mesh_groups(found[1], found[2])
    if found := _IOTA.search(attributes):
        shape, source = _integers(found[1]), _integers(found[2])
        numbers = np.arange(math.prod(source)).reshape(source)
        return numbers.transpose(_integers(found[3]) if found[3] else None if len(source) == 1 else range(len(source))).reshape(shape)
    if found := _LIST.search(attributes):
        groups = [_integers(group) for group in re.findall(r"\{([\d,]*)\}", found[1])]
        return np.array(groups) if groups else np.arange(devices)[None]
    raise ValueError(f"no replica groups of a known form in: {attributes[:200]}")


def source_target_pairs(attributes: str) -> Int[np.ndarray, "pairs 2"]:
    """Who sends to whom in a collective-permute."""
    found = _PAIRS.search(attributes)
    if not found:
        raise ValueError(f"no source_target_pairs in: {attributes[:200]}")
    return np.array([_integers(pair) for pair in re.findall(r"\{(\d+,\d+)\}", found[1])])


def axes_of_groups(groups: Int[np.ndarray, "groups size"], mesh: Mesh) -> tuple[str, ...]:
    """The axes whose product gives exactly these groups, in mesh order; () if there are none."""
    wanted = {frozenset(group.tolist()) for group in groups}
    live = [axis for axis in mesh.axis_names if mesh.shape[axis] > 1]
    for count in range(1, len(live) + 1):
        for axes in itertools.combinations(live, count):
            if wanted == {frozenset(group.tolist()) for group in _groups_along(mesh, axes)}:
                return axes
    return ()


def axes_of_pairs(pairs: Int[np.ndarray, "pairs 2"], mesh: Mesh) -> tuple[str, ...]:
    """The axes along which some sender and its receiver lie apart, in mesh order."""
    source, target = (np.unravel_index(pairs[:, side], mesh.devices.shape) for side in (0, 1))
    return tuple(axis for axis, a, b in zip(mesh.axis_names, source, target, strict=True) if np.any(a != b))


def _groups_along(mesh: Mesh, axes: tuple[str, ...]) -> Int[np.ndarray, "groups size"]:
    places = np.arange(mesh.devices.size).reshape(mesh.devices.shape)
    dims = [mesh.axis_names.index(axis) for axis in axes]
    return np.moveaxis(places, dims, range(-len(dims), 0)).reshape(-1, math.prod(mesh.shape[axis] for axis in axes))


def _mesh_groups(mesh: str, axes: str) -> Int[np.ndarray, "groups size"]:
    """Groups along named axes of a mesh that the program itself describes.

    An axis may be one factor of a mesh axis: 'a':(2)4 is the factor of size 4 that 2 of the same axis come before.
    """
    sizes = {name: int(size) for name, size in re.findall(r"'?([\w.]+)'?=(\d+)", mesh)}
    order = re.search(r"device_ids=\(?\[?([\d,]+)", mesh)
    shape, factors = [], {}
    parts = re.findall(r"'?([\w.]+)'?(?::\((\d+)\)(\d+))?", axes)
    for name, size in sizes.items():
        cuts = {1, size}
        for other, before, own in parts:
            cuts |= {int(before), int(before) * int(own)} if other == name and before else set()
        bounds = sorted(cuts)
        for low, high in itertools.pairwise(bounds):
            factors[name, low] = len(shape)
            shape.append(high // low)
    dims = []
    for name, before, own in parts:
        low, high = (int(before), int(before) * int(own)) if before else (1, sizes[name])
        dims += [place for (other, start), place in factors.items() if other == name and low <= start < high]
    places = np.array(_integers(order[1])) if order else np.arange(math.prod(shape))
    return np.moveaxis(places.reshape(shape), dims, range(-len(dims), 0)).reshape(
        -1, math.prod(shape[dim] for dim in dims)
    )


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)
