"""What one instruction of a compiled program costs: FLOPs of its matrix products and bytes of the chip's memory."""

import json
import math
import re
from typing import NamedTuple

import numpy as np

from moe_jax.audit.hlo import ArrayShape, Instruction, Program, arrays

# The opcodes that cost nothing: they rename what is there, or wait.
FREE = frozenset((
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "opt-barrier", "domain", "add-dependency", "get-dimension-size",
))  # fmt: skip
COLLECTIVES = frozenset((
    "all-to-all", "ragged-all-to-all", "all-gather", "reduce-scatter", "all-reduce", "collective-permute",
))  # fmt: skip
GEMMS = ("gemm", "matmul")  # parts of the names of library calls: __cublas$gemm, __onednn$matmul
IN_CHIP = re.compile(r"\b[a-z]+\d*\w*\[[\d,]*\]\{[^}]*S\([1-9]\)[^}]*\}")  # arrays in a memory inside the chip
NO_ESTIMATE = 2**63 - 1  # what XLA for TPU writes where it has none
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


class Cost(NamedTuple):
    """Of one run of an instruction on one device."""

    flops: float  # of matrix products
    bytes: float  # read from and written to the chip's memory
    cycles: float  # the compiler's own estimate; nan: it has none


class Costs:
    """The costs of a program's instructions, each computed once."""

    def __init__(self, program: Program):
        self.program = program
        self._shapes = {
            name: {instruction.name: instruction.shape for instruction in instructions}
            for name, instructions in program.computations.items()
        }
        self._flops: dict[str, float] = {}

    def of(self, computation: str, instruction: Instruction) -> Cost:
        """The cost of an instruction of a computation; what loops and calls cost is inside them and counts there."""
        if instruction.opcode in FREE or instruction.opcode in ("while", "call", "conditional"):
            return Cost(0.0, 0.0, math.nan)
        found = _CYCLES.search(instruction.attributes)
        cycles = float(found[1]) if found and int(found[1]) < NO_ESTIMATE else math.nan
        return Cost(self.flops(computation, instruction), self._touched(computation, instruction), cycles)

    def flops(self, computation: str, instruction: Instruction) -> float:
        """FLOPs of the matrix products of an instruction, those inside a fusion included; 2 a multiply-add."""
        shapes = self._shapes[computation]
        if instruction.opcode == "dot":
            return _dot(instruction, shapes, _listed(instruction.attributes, "lhs_contracting_dims"))
        if instruction.opcode == "ragged-dot":
            return 2.0 * math.prod(_shape(instruction.operands[0], shapes).dims) * arrays(instruction.shape)[0].dims[-1]
        if instruction.opcode == "convolution":
            return _convolution(instruction, shapes)
        if any(name in instruction.text("custom_call_target") for name in GEMMS):
            found = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.attributes)
            dims = [int(dim) for dim in json.loads(f"[{found[1]}]")] if found else []
            return _dot(instruction, shapes, dims)
        return sum((self._inside(callee) for role, callee in instruction.callees() if role == "calls"), 0.0)

    def _inside(self, computation: str) -> float:
        if computation not in self._flops:
            instructions = self.program.computations[computation]
            self._flops[computation] = sum((self.flops(computation, one) for one in instructions), 0.0)
        return self._flops[computation]

    def _touched(self, computation: str, instruction: Instruction) -> float:
        """Bytes that an instruction reads and writes in the chip's memory.

        Of an array that is sliced inside a fusion, or updated in place, only the slice counts. Collectives, which pass
        through the memory more slowly than it can, count nothing, and neither does the end of what is asynchronous.
        """
        shapes, opcode = self._shapes[computation], instruction.opcode
        if opcode.endswith(("-done", "-update")) or opcode.removesuffix("-start") in COLLECTIVES:
            return 0.0
        if opcode == "copy-start":  # what is written, what is read, and a handle
            return sum((array.bytes for array in _in_memory(instruction.shape)), 0.0)
        inside = {i.opcode for _, callee in instruction.callees() for i in self.program.computations[callee]}
        inside.add(instruction.opcode)
        read = [a for name in instruction.operands for a in _in_memory(shapes.get(name, ""))]
        written = _in_memory(instruction.shape)
        size = lambda of: sum((array.bytes for array in of), 0.0)
        if inside & {"dynamic-update-slice", "scatter"}:
            read, written = [array for array in read if array not in written], []
            return 2 * size(read)
        if inside & {"dynamic-slice", "gather", "slice"}:
            read = [array for array in read if array.bytes <= size(arrays(instruction.shape))]
            return size(read) + 2 * size(written)
        return size(read) + size(written)


def _in_memory(shape: str) -> list[ArrayShape]:
    """The arrays of a printed shape that are in the chip's memory, and not in one inside it."""
    return arrays(IN_CHIP.sub("", shape))


def _shape(name: str, shapes: dict[str, str]) -> ArrayShape:
    return arrays(shapes[name])[0]


def _listed(attributes: str, key: str) -> list[int]:
    found = re.search(rf"\b{key}=\{{([\d,]*)\}}", attributes)
    return [int(dim) for dim in found[1].split(",") if dim] if found else []


def _dot(instruction: Instruction, shapes: dict[str, str], contracting: list[int]) -> float:
    left = _shape(instruction.operands[0], shapes).dims
    return 2.0 * math.prod(arrays(instruction.shape)[0].dims) * math.prod(left[dim] for dim in contracting)


def _convolution(instruction: Instruction, shapes: dict[str, str]) -> float:
    """XLA for TPU writes matrix products as convolutions, whose spatial dimensions are those of a batch.

    For each spatial dimension only the pairs of output and window count that meet an element of the input: neither
    padding nor the holes of a dilated input.
    """
    [(left, right, out)] = re.findall(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", "".join(re.findall(r"window=\{([^}]*)\}", instruction.attributes))))
    lhs, rhs = (_shape(name, shapes).dims for name in instruction.operands[:2])
    result = arrays(instruction.shape)[0].dims
    total = 2.0 * result[out.index("b")] * result[out.index("f")] * rhs[right.index("i")]
    for dim in (label for label in out if label.isdigit()):
        of = lambda key, default, dim=dim: window.get(key, "x".join([default] * 9)).split("x")[int(dim)]
        low = int(of("pad", "0_0").split("_")[0])
        stride, hole, dilation = int(of("stride", "1")), int(of("lhs_dilate", "1")), int(of("rhs_dilate", "1"))
        place = np.arange(result[out.index(dim)])[:, None] * stride + np.arange(int(of("size", "1"))) * dilation - low
        last = (lhs[left.index(dim)] - 1) * hole
        total *= int(((place >= 0) & (place <= last) & (place % hole == 0)).sum())
    return total
