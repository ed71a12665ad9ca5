"""The table of a family: which of their tensors holds each of our parameters, and how it lies there.

A row names one parameter. Ours are paths in the tree of weights; inside a layer they begin at the layer, and theirs at
`model.layers.N.`. Their name may say {expert}: then each expert has a tensor of its own, which is stacked here.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from moe_jax.config.layers import segments
from moe_jax.config.schema import RunConfig

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one of our matrices or vectors lies in a tensor of theirs."""

    transposed: bool = False  # theirs is [out, in], as torch's linear layers have it, and ours [in, out]
    part: int = 0  # of `parts` that their tensor has along our last dimension
    parts: int = 1
    interleaved: bool = False  # the parts take turns; False: one after another
    leading: bool = False  # theirs has a further first dimension of 1

    def their_shape(self, ours: Shape) -> Shape:
        """Of their tensor, for one of ours."""
        shape = (*ours[:-1], ours[-1] * self.parts)
        shape = (*shape[:-2], shape[-1], shape[-2]) if self.transposed else shape
        return (1, *shape) if self.leading else shape

    def view(self, theirs: np.ndarray) -> np.ndarray:
        """Ours in theirs: a view, so that what is written to it is written there."""
        theirs = theirs[0] if self.leading else theirs
        whole = theirs.swapaxes(-1, -2) if self.transposed else theirs
        if self.parts == 1:
            return whole
        size = whole.shape[-1] // self.parts
        return whole[..., self.part :: self.parts] if self.interleaved else whole[..., self.part * size :][..., :size]


COPIED = Layout()
TRANSPOSED = Layout(transposed=True)


class Row(NamedTuple):
    """One line of a family's table."""

    ours: str
    theirs: str
    layout: Layout = COPIED


class Binding(NamedTuple):
    """One of our parameters, of all layers that a scan stacks, and where its parts are."""

    path: str  # in the tree of weights, or of balance biases
    shape: Shape
    names: np.ndarray  # of their tensors, as objects; the first dimensions of `shape` that they are stacked over
    layout: Layout

    @property
    def inner(self) -> Shape:
        """The shape of one of ours in one of theirs."""
        return self.shape[self.names.ndim :]


@dataclasses.dataclass(frozen=True)
class Table:
    """The rows of a family: those of the model itself, and those of each layer."""

    model: tuple[Row, ...]
    layers: tuple[Row, ...]
    prefix: str = "model.layers.{layer}."

    def bindings(self, run: RunConfig, shapes: Mapping[str, Shape]) -> Iterator[Binding]:
        """Every parameter of `shapes`, by path. Raises KeyError for one that the table does not have."""
        of_model = {row.ours: row for row in self.model}
        of_layer = {row.ours: row for row in self.layers}
        places = _layers_of_places(run)
        for path, shape in shapes.items():
            if path in of_model:
                row = of_model[path]
                yield Binding(path, shape, np.array(row.theirs, object), row.layout)
                continue
            place, inside = split_path(path)
            row, layers = of_layer[inside], places[place]
            yield Binding(path, shape, self._names(row, layers, shape), row.layout)

    def _names(self, row: Row, layers: range, shape: Shape) -> np.ndarray:
        experts = range(shape[1]) if "{expert}" in row.theirs else None
        name = self.prefix + row.theirs
        if experts is None:
            return np.array([name.format(layer=layer) for layer in layers], object)
        return np.array([[name.format(layer=layer, expert=e) for e in experts] for layer in layers], object)


def split_path(path: str) -> tuple[str, str]:
    """("segments/0/blocks/1", "attention/q") of "segments/0/blocks/1/attention/q"."""
    parts = path.split("/")
    return "/".join(parts[:4]), "/".join(parts[4:])


def _layers_of_places(run: RunConfig) -> dict[str, range]:
    """The layers, counted from the input, that are stacked at each place of the tree of weights."""
    places, first = {}, 0
    for index, segment in enumerate(segments(run)):
        period = len(segment.pattern)
        for place in range(period):
            places[f"segments/{index}/blocks/{place}"] = range(first + place, first + segment.num_layers, period)
        first += segment.num_layers
    return places


class Mismatch(NamedTuple):
    """What keeps a folder from being the weights of a model, as lists of phrases; all empty: it is."""

    missing: list[str]
    extra: list[str]
    wrong: list[str]  # "name: has (2, 3), needs (3, 2)"


def compare(bindings: Iterable[Binding], theirs: Mapping[str, Shape]) -> Mismatch:
    """Holds the tensors of a folder against what a table needs: each of theirs, and each part of one, exactly once.

    Raises ValueError where the table itself takes a part twice, or leaves one out.
    """
    needed: dict[str, Shape] = {}
    taken: dict[str, list[tuple[int, int]]] = {}
    for binding in bindings:
        for name in binding.names.flat:
            needed[name] = binding.layout.their_shape(binding.inner)
            taken.setdefault(name, []).append((binding.layout.part, binding.layout.parts))
    for name, parts in taken.items():
        if sorted(parts) != [(i, parts[0][1]) for i in range(parts[0][1])]:
            raise ValueError(f"the table takes {name} in parts {parts}: each part has to be there once")
    wrong = [
        f"{name}: has {theirs[name]}, needs {shape}"
        for name, shape in needed.items()
        if name in theirs and theirs[name] != shape
    ]
    return Mismatch([n for n in needed if n not in theirs], [n for n in theirs if n not in needed], wrong)
