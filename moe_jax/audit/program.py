"""What a compiled step really does: which collectives it runs over which mesh axes, how many bytes they send, what
work runs beside them, and in what precision it multiplies.

    text = compiled.as_text()
    for collective in collectives(text, mesh):
        print(collective.kind, collective.axes, collective.count * bytes_sent(collective), collective.source)

The partitioner and the backends are free to replace what was written. For instance they turn a gather over two axes
into an all-reduce of a padded buffer, or a reduce-scatter into an all-reduce. Contracts about communication are
therefore checked on the optimised program and not on the source.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from jax.sharding import AbstractMesh, Mesh

from moe_jax.audit.hlo import Instruction, Program, arrays, parse
from moe_jax.audit.replica_groups import (
    axes_of_pairs,
    axes_of_replica_groups,
    replica_groups,
    source_target_pairs,
    with_nodes,
)

KINDS = ("all-to-all", "ragged-all-to-all", "all-gather", "reduce-scatter", "all-reduce", "collective-permute")
_MATMULS = ("dot", "convolution", "ragged-dot")
_GEMM_TARGETS = ("gemm", "matmul")  # parts of the names of library calls: __cublas$gemm, __onednn$matmul
# The opcodes that take time. All others rename, wait for or move what is already on the device.
_WORK = (
    *_MATMULS,
    *KINDS,
    "fusion",
    "custom-call",
    "while",
    "call",
    "conditional",
    "sort",
    "scatter",
    "gather",
    "reduce",
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction of a compiled program."""

    kind: str  # one of KINDS
    axes: tuple[str, ...]  # mesh axes that its replica groups span, in mesh order; (): see `replica_group_size`
    replica_group_size: int  # devices that take part together; if axes is (), 1: no partner, more: fits no axes
    bytes: float  # the whole buffer on one device in one run: gathered, to be scattered, reduced, exchanged, passed on
    count: float  # runs in one run of the program; the trip counts of enclosing loops are multiplied out
    asynchronous: bool  # whether it is a start and a done, between which other work may run
    overlapped: tuple[str, ...]  # sorted opcodes of the work scheduled between the two; "dot" for any matmul
    overlapped_bytes: float  # that this work reads and writes, other collectives left out
    dtype: str  # element type of the payload, as HLO names it; several are joined by "+"
    shapes: tuple[str, ...]  # shapes of the results, one for each array that the compiler packed into the collective
    op_name: str  # JAX's name of the operation
    source: str  # the lines of Python that led to it, outermost first
    name: str  # of the instruction
    group: tuple[int, ...]  # the first replica group, as places in the mesh, row by row

    @property
    def hidden(self) -> bool:
        """Whether a matmul, or other work on at least as many bytes, is scheduled between its start and its done."""
        return "dot" in self.overlapped or (self.asynchronous and self.overlapped_bytes >= self.bytes)


class Matmul(NamedTuple):
    """One matrix product of a compiled program, which may be inside a fusion or a library call."""

    operands: tuple[str, str]  # element types of the two operands, as HLO names them
    result: str  # element type of the result
    precision: tuple[str, ...]  # precision of each operand, such as "highest"; (): the backend's default
    op_name: str
    source: str


def collectives(text: str, mesh: Mesh | AbstractMesh, expert_nodes: int = 1) -> list[Collective]:
    """All collectives of an optimised module compiled for `mesh`, in the order of the text. Where the axis `expert`
    spans nodes, its parts `expert:nodes` and `expert:inside` count as axes too.

    Raises ValueError for a collective inside a loop whose length cannot be found.
    """
    program = parse(text)
    meshes = [mesh, *([] if expert_nodes == 1 else [with_nodes(mesh, expert_nodes)])]
    callers = _asynchronous_callers(program)
    fusions = _fused(program)
    found = []
    for name, instructions in program.computations.items():
        for index, instruction in enumerate(instructions):
            if instruction.opcode.removesuffix("-start") in KINDS and program.executions.get(name):
                sliced = name in fusions and _root(instructions).opcode == "dynamic-slice"
                found.append(_collective(program, meshes, _Place(name, index), callers.get(name), sliced))
    return found


def bytes_sent(collective: Collective) -> float:
    """Bytes that one device sends in one run, by the ring formula over the n devices of a replica group.

    All-gather, reduce-scatter and all-to-all send (n - 1) / n of the buffer, an all-reduce twice that, and a
    collective-permute all of it. A ragged all-to-all is charged its whole receive buffer, as if it were full.
    """
    n = collective.replica_group_size
    if collective.kind == "collective-permute":
        return collective.bytes
    return collective.bytes * (n - 1) / n * (2 if collective.kind == "all-reduce" else 1)


def matmuls(text: str) -> list[Matmul]:
    """All matrix products of an optimised module."""
    program = parse(text)
    found = []
    for instructions in program.computations.values():
        shapes = {instruction.name: instruction.shape for instruction in instructions}
        found += [_matmul(program, shapes, i) for i in instructions if _is_matmul(i)]
    return found


def _is_matmul(instruction: Instruction) -> bool:
    target = instruction.text("custom_call_target")
    return instruction.opcode in _MATMULS or any(name in target for name in _GEMM_TARGETS)


def _matmul(program: Program, shapes: dict[str, str], instruction: Instruction) -> Matmul:
    found = re.search(r'"?operand_precision"?[=:][{\[]([^}\]]*)[}\]]', instruction.attributes)
    precision = tuple(found[1].replace('"', "").lower().split(",")) if found else ()
    left, right = (arrays(shapes[name])[0].dtype for name in instruction.operands[:2])
    return Matmul(
        operands=(left, right),
        result=arrays(instruction.shape)[0].dtype,
        precision=() if set(precision) <= {"", "default"} else precision,
        op_name=instruction.text("op_name"),
        source=program.source(instruction),
    )


class _Place(NamedTuple):
    """An instruction's place in the program."""

    computation: str
    position: int  # in the computation's schedule


def _asynchronous_callers(program: Program) -> dict[str, _Place]:
    """For every computation that runs beside its caller: the place of the start that launches it."""
    callers: dict[str, _Place] = {}
    for name in reversed(program.computations):
        for index, instruction in enumerate(program.computations[name]):
            place = _Place(name, index) if instruction.opcode.endswith("-start") else callers.get(name)
            if place is not None:
                callers.update({callee: place for _, callee in instruction.callees()})
    return callers


def _collective(
    program: Program, meshes: Sequence[Mesh | AbstractMesh], place: _Place, caller: _Place | None, sliced: bool
) -> Collective:
    """The collective at `place`.

    `caller` is the start that runs its computation beside other work, if there is one. `sliced` says that it stands in
    a fusion that returns a slice: XLA for TPU writes some reduce-scatters as a pad, an all-reduce and a slice.
    """
    instructions = program.computations[place.computation]
    instruction = instructions[place.position]
    kind = instruction.opcode.removesuffix("-start")
    paired = kind != instruction.opcode
    start = place if paired else caller
    pair = _pair(instructions, place.position) if paired else None
    results = arrays(instructions[pair[1]].shape if pair else instruction.shape)
    if (
        paired and not pair
    ):  # it ends in another computation, so only the start's shape is known: operands, then results
        results = results[len(instruction.operands) :][: len(instruction.operands)] or results
    axes, size, group = _span(instruction, meshes)
    count = program.executions[place.computation]
    if math.isnan(count):
        raise ValueError(f"{kind} {instruction.name} is in a loop whose trip count is not in the program's text")
    named = instruction if instruction.text("op_name") else _reduction(program, instruction)
    work = _work_between(program, start) if start else []
    return Collective(
        kind="reduce-scatter" if kind == "all-reduce" and sliced else kind,
        axes=axes,
        replica_group_size=size,
        bytes=sum(array.bytes for array in results) * (size if kind == "reduce-scatter" else 1),
        count=count,
        asynchronous=start is not None and '"is_sync":true' not in instruction.attributes,
        overlapped=tuple(sorted({"dot" if _multiplies(program, i) else i.opcode for i in work})),
        overlapped_bytes=_touched(program, program.computations[start.computation], work) if start else 0.0,
        dtype="+".join(sorted({array.dtype for array in results})),
        shapes=tuple(map(str, results)),
        op_name=named.text("op_name"),
        source=program.source(named),
        name=instruction.name,
        group=group,
    )


def _fused(program: Program) -> set[str]:
    """The names of the computations that are the inside of a fusion."""
    fusions = (i for body in program.computations.values() for i in body if i.opcode.startswith("fusion"))
    return {callee for fusion in fusions for _, callee in fusion.callees()}


def _root(instructions: list[Instruction]) -> Instruction:
    return next(instruction for instruction in instructions if instruction.root)


def _reduction(program: Program, instruction: Instruction) -> Instruction:
    """The sum inside a reducing collective: it keeps its name where rewrites have lost that of the collective."""
    callee = dict(instruction.callees()).get("to_apply")
    return _root(program.computations[callee]) if callee else instruction


def _span(
    instruction: Instruction, meshes: Sequence[Mesh | AbstractMesh]
) -> tuple[tuple[str, ...], int, tuple[int, ...]]:
    """Axes, size and first of a collective's replica groups, by the first of `meshes` that has such axes."""
    mesh = meshes[0]
    if instruction.opcode.startswith("collective-permute"):
        pairs = source_target_pairs(instruction.attributes)
        axes = axes_of_pairs(pairs, mesh)
        return axes, math.prod(mesh.shape[axis] for axis in axes), tuple(pairs[0].tolist())
    groups = replica_groups(instruction.attributes, mesh.size)
    axes = next(filter(None, (axes_of_replica_groups(groups, one) for one in meshes)), ())
    return axes, groups.shape[1], tuple(groups[0].tolist())


def _pair(instructions: list[Instruction], start: int) -> tuple[int, int] | None:
    """The positions where the asynchronous operation that begins at `start` gets its operands and where it ends.

    None means that it ends in another computation. On TPU's SparseCore the start only wakes the core, without operands,
    and an update hands over the data.
    """
    chain, launched = {instructions[start].name}, start
    for index, instruction in enumerate(instructions[start + 1 :], start + 1):
        if chain.intersection(instruction.operands[:1]):
            if instruction.opcode.endswith("-done"):
                return launched, index
            if instruction.opcode.endswith("-update"):
                chain.add(instruction.name)
                launched = index if not instructions[launched].operands else launched
    return None


def _work_between(program: Program, start: _Place) -> list[Instruction]:
    """The work scheduled while an asynchronous operation runs; none if it ends in another computation."""
    instructions = program.computations[start.computation]
    pair = _pair(instructions, start.position)
    return [i for i in instructions[pair[0] + 1 : pair[1]] if i.opcode in _WORK] if pair else []


def _touched(program: Program, instructions: list[Instruction], work: list[Instruction]) -> float:
    """Bytes of the operands and results of `work`, some of `instructions`, but for its collectives.

    Of a stack of layers that is sliced, or updated in place, only the slice counts.
    """
    shapes = {instruction.name: instruction.shape for instruction in instructions}
    total = 0.0
    for instruction in (i for i in work if i.opcode not in KINDS):
        inside = {i.opcode for _, callee in instruction.callees() for i in program.computations[callee]}
        read = [array for name in instruction.operands for array in arrays(shapes.get(name, ""))]
        written = arrays(instruction.shape)
        if "dynamic-slice" in inside:
            read = [array for array in read if array.bytes <= sum(result.bytes for result in written)]
        if "dynamic-update-slice" in inside:
            read, written = [array for array in read if array not in written], []
        total += sum(array.bytes for array in (*read, *written))
    return total


def _multiplies(program: Program, instruction: Instruction) -> bool:
    inside = (i for _, callee in instruction.callees() for i in program.computations[callee])
    return _is_matmul(instruction) or any(_multiplies(program, i) for i in inside)
