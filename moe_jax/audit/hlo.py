"""Parses the text of a compiled program into computations, their instructions in the order of the schedule, and the
number of times that each computation runs.

The text is what `jax.stages.Compiled.as_text()` prints for CPU, GPU and TPU. `moe_jax.audit.program` interprets it.
"""

import collections
import math
import re
from typing import NamedTuple

_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAMED = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_COMMENT = re.compile(r"/\*.*?\*/")
_REFERENCE = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_CALLS = re.compile(
    r"\b(calls|to_apply|body|condition|true_computation|false_computation|called_computations|branch_computations)="
    r"(\{[^}]*\}|%?[\w.\-]+)"
)


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    opcode: str
    shape: str  # shape of the result as it is printed: one array, or several in brackets
    operands: tuple[str, ...]  # names of the instructions that it reads
    arguments: str  # what is printed between the brackets after the opcode
    attributes: str  # what is printed after these brackets
    root: bool  # whether it is the computation's result

    def callees(self) -> list[tuple[str, str]]:
        """(role, computation) of every computation that it runs; the end of an asynchronous pair runs none."""
        if self.opcode.endswith(("-done", "-update")):
            return []
        calls = [(role, names.strip("{}")) for role, names in _CALLS.findall(self.attributes)]
        return [(role, name.strip().lstrip("%")) for role, names in calls for name in names.split(",")]

    def text(self, key: str) -> str:
        """The quoted value of `key`, or an empty string."""
        found = re.search(rf'\b{key}="([^"]*)"', self.attributes)
        return found[1] if found else ""


class Program(NamedTuple):
    """A parsed program."""

    computations: dict[str, list[Instruction]]  # callees before their callers
    executions: dict[str, float]  # how often each runs in one run of the program; nan: in a loop of unknown length
    stacks: dict[int, str]  # Python call stacks, outermost call first: "models/block.py:71 > moe/layer.py:46"

    def source(self, instruction: Instruction) -> str:
        """The lines of Python that asked for the instruction; empty if the compiler added it."""
        frame = re.search(r"\bstack_frame_id=(\d+)", instruction.attributes)
        if frame:
            return self.stacks.get(int(frame[1]), "")
        path, line = instruction.text("source_file"), re.search(r"\bsource_line=(\d+)", instruction.attributes)
        return f"{_short(path)}:{line[1]}" if path and line else ""


class ArrayShape(NamedTuple):
    """Element type and dimensions of one array."""

    dtype: str  # the name that HLO has for it: bf16, f32, s32, pred ...
    dims: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"

    @property
    def bytes(self) -> float:
        """Size in bytes, without padding."""
        width = re.search(r"\d+", self.dtype)
        bits = 8 if self.dtype == "pred" else int(width[0]) if width else 0
        return math.prod(self.dims) * bits / 8


def arrays(shape: str) -> list[ArrayShape]:
    """The arrays of a printed shape; tuples are flattened."""
    return [ArrayShape(dtype, tuple(map(int, filter(None, dims.split(","))))) for dtype, dims in _ARRAY.findall(shape)]


def parse(text: str) -> Program:
    """Parses the whole text of an optimised module. Raises ValueError if it has no entry computation."""
    computations: dict[str, list[Instruction]] = {}
    entry: str | None = None
    current: list[Instruction] | None = None
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = computations.setdefault(header[1], [])
            entry = header[1] if line.startswith("ENTRY") else entry
        elif current is not None and (named := _NAMED.match(line)):
            current.append(_instruction(named[2], named[3], bool(named[1])))
    if entry is None:
        raise ValueError("no ENTRY computation: this is not the text of a compiled program (Compiled.as_text())")
    return Program(computations, _executions(computations, entry), _stacks(text))


def _instruction(name: str, rest: str, root: bool) -> Instruction:
    """Parses `rest`, the shape, opcode, arguments and attributes that are printed after the equals sign."""
    rest = _COMMENT.sub("", rest)
    shape_end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    opening = rest.index("(", shape_end)
    closing = _closing(rest, opening)
    arguments = rest[opening + 1 : closing - 1]
    operands = tuple(_REFERENCE.findall(arguments))
    opcode = rest[shape_end:opening].strip()
    return Instruction(name, opcode, rest[:shape_end], operands, arguments, rest[closing:], root)


def _closing(text: str, opening: int) -> int:
    """The index after the bracket that closes the one at `opening`."""
    depth = 0
    for bracket in re.finditer(r"[()]", text[opening:]):
        depth += 1 if bracket[0] == "(" else -1
        if depth == 0:
            return opening + bracket.end()
    raise ValueError(f"unbalanced brackets: {text[:200]}")


def _executions(computations: dict[str, list[Instruction]], entry: str) -> dict[str, float]:
    """How often each computation runs in one run of the program.

    Callees are printed before their callers, so one pass from the last computation to the first adds everything up.
    Every branch of a conditional counts as run, which makes the numbers an upper bound.
    """
    runs: dict[str, float] = collections.defaultdict(float, {entry: 1.0})
    for name in reversed(computations):
        for instruction in computations[name] if runs[name] else ():
            times = trip_count(instruction, computations) if instruction.opcode == "while" else 1.0
            for _, callee in instruction.callees():
                runs[callee] += runs[name] * times
    return dict(runs)


def trip_count(loop: Instruction, computations: dict[str, list[Instruction]]) -> float:
    """Iterations of a while loop; nan where they cannot be found.

    The compilers for CPU and GPU print the number. TPU's does not, so there it is the constant that a counter from 0 is
    compared with.
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
        return float(known[1])
    condition = computations[dict(loop.callees())["condition"]]
    constants = {i.name: float(i.arguments) for i in condition if i.opcode == "constant" and i.arguments.isdigit()}
    root = next(i for i in condition if i.root)
    limits = [constants[operand] for operand in root.operands if operand in constants]
    counts_up = root.opcode == "compare" and "direction=LT" in root.attributes
    return limits[0] if counts_up and len(limits) == 1 else math.nan


def _stacks(text: str) -> dict[int, str]:
    """The chain of "directory/file.py:line" of each stack frame, from the tables at the head of the text."""
    files = _table(text, "FileNames")
    numbers = lambda row: {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", row)}
    locations = {key: numbers(row) for key, row in _table(text, "FileLocations").items()}
    frames = {key: numbers(row) for key, row in _table(text, "StackFrames").items()}
    # Parents are printed one too high: the first frame has no parent, and 1 is printed for it.
    shift = frames[1]["parent_frame_id"] if 1 in frames else 0
    stacks: dict[int, str] = {}
    for key, frame in frames.items():
        location = locations[frame["file_location_id"]]
        path = files[location["file_name_id"]].strip('"')
        here = f"{_short(path)}:{location['line']}"
        parent = stacks.get(frame["parent_frame_id"] - shift)
        stacks[key] = f"{parent} > {here}" if parent else here
    return stacks


def _table(text: str, name: str) -> dict[int, str]:
    found = re.search(rf"^{name}\n((?:\d+ .*\n)+)", text, re.MULTILINE)
    rows = [line.partition(" ") for line in found[1].splitlines()] if found else []
    return {int(key): row for key, _, row in rows}


def _short(path: str) -> str:
    return "/".join(path.split("/")[-2:])
