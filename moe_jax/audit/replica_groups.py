"""Finds the mesh axes that a collective spans from its replica groups, as a compiled program prints them.

A replica group is a set of devices that take part in a collective together. Its numbers are positions in the mesh
(`mesh.devices` flattened), not device ids.
"""

import itertools
import math
import re

import numpy as np
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Int

from moe_jax.parallel.mesh import ACROSS_NODES, EXPERT, INSIDE_NODES

_LIST = re.compile(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_NAMED = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:,\s*device_ids=\((.*?)\)(?=\s*\{))?\s*\{([^}]*)\}")
_AXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")
_TRANSPOSED = re.compile(r"\[([\d,]+)\]T\(([\d,]+)\)")
_PAIRS = re.compile(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")


def replica_groups(attributes: str, devices: int) -> Int[np.ndarray, "groups size"]:
    """The replica groups of one collective, read from its attributes, which have them in one of three forms.

        {{0,1},{2,3}}                         listed; {} is one group of all devices
        [2,2]<=[2,2]T(1,0)                    0, 1, 2 ... as a [2,2] array, transposed, in rows of [2,2]
        mesh['data'=2,'expert'=2] {'expert'}  along named axes; device_ids may follow, listed or as [2,2]T(1,0)

    Raises ValueError for any other form.
    """
    if found := _NAMED.search(attributes):
        return _along_named_axes(*found.groups())
    if found := _IOTA.search(attributes):
        shape, source, order = map(_integers, found.groups(default=""))
        return _iota(source, order).reshape(shape)
    if found := _LIST.search(attributes):
        groups = [_integers(group) for group in re.findall(r"\{([\d,]*)\}", found[1])]
        return np.array(groups) if groups else np.arange(devices)[None]
    raise ValueError(f"no replica groups of a known form in: {attributes[:200]}")


def source_target_pairs(attributes: str) -> Int[np.ndarray, "pairs 2"]:
    """The (sender, receiver) pairs of a collective-permute.

    Raises ValueError if the attributes have none.
    """
    found = _PAIRS.search(attributes)
    if not found:
        raise ValueError(f"no source_target_pairs in: {attributes[:200]}")
    return np.array([_integers(pair) for pair in re.findall(r"\{(\d+,\d+)\}", found[1])]).reshape(-1, 2)


def axes_of_replica_groups(groups: Int[np.ndarray, "groups size"], mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    """The axes whose product gives exactly these replica groups, in mesh order; () if there are none."""
    wanted = {frozenset(group.tolist()) for group in groups}
    live = [axis for axis in mesh.axis_names if mesh.shape[axis] > 1]
    places = np.arange(mesh.size).reshape(tuple(mesh.shape.values()))
    for count in range(1, len(live) + 1):
        for axes in itertools.combinations(live, count):
            along = _groups_along(places, [mesh.axis_names.index(axis) for axis in axes])
            if wanted == {frozenset(group.tolist()) for group in along}:
                return axes
    return ()


def with_nodes(mesh: Mesh | AbstractMesh, nodes: int) -> AbstractMesh:
    """The mesh with `expert` cut into the nodes that it spans and the places inside them."""
    parts = {ACROSS_NODES: nodes, INSIDE_NODES: mesh.shape[EXPERT] // nodes}
    of_axis = lambda axis: parts if axis == EXPERT else {axis: mesh.shape[axis]}
    shape = {name: size for axis in mesh.axis_names for name, size in of_axis(axis).items()}
    return AbstractMesh(tuple(shape.values()), tuple(shape))


def axes_of_pairs(pairs: Int[np.ndarray, "pairs 2"], mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    """The axes, in mesh order, along which at least one sender and its receiver differ."""
    sizes = tuple(mesh.shape.values())
    source, target = (np.unravel_index(pairs[:, side], sizes) for side in (0, 1))
    return tuple(axis for axis, a, b in zip(mesh.axis_names, source, target, strict=True) if np.any(a != b))


def _along_named_axes(mesh: str, order: str | None, axes: str) -> Int[np.ndarray, "groups size"]:
    """Replica groups along axes of a mesh that the program itself describes.

    'a':(2)4 is a part of axis a: if the axis is cut into factors, the major one first, it is the factor of size 4
    behind factors whose product is 2.
    """
    wanted = [(name, int(before or 1), int(size or 0)) for name, before, size in _AXIS.findall(axes)]
    shape: list[int] = []
    dims: list[int] = []
    for name, text in re.findall(r"'([^']+)'=(\d+)", mesh):
        whole = int(text)
        parts = [(before, before * (size or whole)) for axis, before, size in wanted if axis == name]
        for low, high in itertools.pairwise(sorted({1, whole, *itertools.chain(*parts)})):
            dims += [len(shape)] if any(start <= low and high <= end for start, end in parts) else []
            shape.append(high // low)
    transposed = _TRANSPOSED.fullmatch(order or "")
    if transposed:
        places = _iota(_integers(transposed[1]), _integers(transposed[2]))
    else:
        places = np.array(_integers(order)) if order else np.arange(math.prod(shape))
    return _groups_along(places.reshape(shape), dims)


def _groups_along(places: Int[np.ndarray, "..."], dims: list[int]) -> Int[np.ndarray, "groups size"]:
    size = math.prod(places.shape[dim] for dim in dims)
    return np.moveaxis(places, dims, range(-len(dims), 0)).reshape(-1, size)


def _iota(shape: tuple[int, ...], order: tuple[int, ...]) -> Int[np.ndarray, "..."]:
    """The numbers 0, 1, 2 ... in `shape`, whose dimensions are then put in `order` (empty: they stay)."""
    return np.arange(math.prod(shape)).reshape(shape).transpose(order or range(len(shape)))


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number.strip())
