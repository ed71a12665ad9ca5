"""Walks the schedule of a compiled program, each operation at its own time, and waits where the program waits.

Operations of a computation run one after another, as the compiler has put them. What is asynchronous begins at its
start, takes its link (or the memory's copy engine, or the SparseCore) for itself, and its done waits for it. The body
of a loop is walked once and counted as often as it runs.
"""

import collections
import dataclasses
import math
from collections.abc import Mapping

from absl import logging

from moe_jax.audit.costs import COLLECTIVES, Cost, Costs
from moe_jax.audit.hlo import Instruction, Program, trip_count
from moe_jax.parallel.chips import Chip

MATMUL, MEMORY = "matrix products", "memory"


@dataclasses.dataclass(frozen=True)
class Rates:
    """What a chip reaches of its peaks; 1 and 1 is the roofline."""

    chip: Chip
    matmul: float = 1.0
    memory: float = 1.0
    cycles: bool = False  # where the compiler has an estimate of its own, that

    def seconds(self, cost: Cost) -> tuple[float, str]:
        """Of one operation, and what it waits for."""
        compute = cost.flops / (self.chip.flops * self.matmul)
        memory = cost.bytes / (self.chip.bandwidth * self.memory)
        bound = MATMUL if cost.flops and compute >= memory else MEMORY
        if self.cycles and not math.isnan(cost.cycles):
            return cost.cycles / self.chip.clock, MATMUL if cost.flops else MEMORY
        return max(compute, memory), bound


@dataclasses.dataclass
class Walked:
    """How the time of a program, or of a part of it, is spent."""

    seconds: float = 0.0
    spent: dict[str, float] = dataclasses.field(default_factory=lambda: collections.defaultdict(float))
    # By the line of Python that asked for it, and by what it waits for.
    lines: dict[tuple[str, str], float] = dataclasses.field(default_factory=lambda: collections.defaultdict(float))

    def add(self, seconds: float, what: str, line: str) -> None:
        """What the program waits for next."""
        self.seconds += seconds
        self.spent[what] += seconds
        self.lines[line, what] += seconds

    def repeat(self, part: "Walked", times: float) -> None:
        """A part of the program, so many times."""
        self.seconds += times * part.seconds
        for what, seconds in part.spent.items():
            self.spent[what] += times * seconds
        for key, seconds in part.lines.items():
            self.lines[key] += times * seconds


class Walk:
    """The walk of one program at given rates."""

    def __init__(self, program: Program, costs: Costs, rates: Rates, links: Mapping[str, tuple[str, float, str]]):
        """`links`: of each collective, by the instruction's name: its link, its seconds on it, and its kind."""
        self.program, self.costs, self.rates, self.links = program, costs, rates, links
        self._walked: dict[str, Walked] = {}
        self._links_inside: dict[str, list[tuple[str, float, str]]] = {}

    def whole(self) -> Walked:
        """The entry computation."""
        entry = next(reversed(self.program.computations))
        return self.computation(entry)

    def computation(self, name: str) -> Walked:
        """One run of a computation."""
        if name not in self._walked:
            self._walked[name] = self._walk(name)
        return self._walked[name]

    def _walk(self, name: str) -> Walked:
        walked = Walked()
        ends: dict[str, tuple[float, str, str]] = {}  # of what is under way: when, what it is, and its line
        busy: dict[str, float] = collections.defaultdict(float)  # until when a link is taken
        waits: dict[str, Instruction] = {}  # starts without operands, which an update hands over
        for instruction in self.program.computations[name]:
            opcode = instruction.opcode
            if opcode.endswith("-done"):
                end, what, line = ends.get(instruction.operands[0], (0.0, MEMORY, ""))
                if end > walked.seconds:
                    walked.add(end - walked.seconds, what, line)
            elif opcode.endswith("-update"):
                launched = waits.pop(instruction.operands[0], None)
                if launched is None:
                    ends[instruction.name] = ends.get(instruction.operands[0], (0.0, MEMORY, ""))
                else:
                    ends[instruction.name] = self._begin(name, launched, walked.seconds, busy)
            elif opcode.endswith("-start") and not instruction.operands:
                waits[instruction.name] = instruction
            elif opcode.endswith("-start"):
                ends[instruction.name] = self._begin(name, instruction, walked.seconds, busy)
            else:
                self._in_order(name, instruction, walked)
        return walked

    def _begin(self, name: str, instruction: Instruction, now: float, busy: dict[str, float]) -> tuple[float, str, str]:
        """When an asynchronous operation that begins now, or when its link is free, ends; what it is, and its line."""
        link, seconds, what = self._asynchronous(name, instruction)
        busy[link] = max(now, busy[link]) + seconds
        return busy[link], what, self._line(instruction)

    def _line(self, instruction: Instruction) -> str:
        """The line of Python that asked for an instruction, or what the compiler says of its own."""
        source = self.program.source(instruction).split(" > ")[-1]
        return source or f"({instruction.opcode.removesuffix('-start')} of the compiler)"

    def _asynchronous(self, name: str, instruction: Instruction) -> tuple[str, float, str]:
        """Link, seconds and kind of an asynchronous operation."""
        if instruction.name in self.links:
            return self.links[instruction.name]
        called = [callee for _, callee in instruction.callees()]
        if called:
            if found := [link for callee in called for link in self._inside(callee)]:
                return max(found, key=lambda one: one[1])
            return "core beside", sum(self.computation(callee).seconds for callee in called), MEMORY
        cost = self.costs.of(name, instruction)
        return "copies", cost.bytes / (self.rates.chip.bandwidth * self.rates.memory), MEMORY

    def _inside(self, name: str) -> list[tuple[str, float, str]]:
        """The links of the collectives of a computation and of all that it calls."""
        if name not in self._links_inside:
            found = []
            for instruction in self.program.computations[name]:
                found += [self.links[instruction.name]] if instruction.name in self.links else []
                for _, callee in instruction.callees():
                    found += self._inside(callee)
            self._links_inside[name] = found
        return self._links_inside[name]

    def _in_order(self, name: str, instruction: Instruction, walked: Walked) -> None:
        callees = [callee for _, callee in instruction.callees()]
        if instruction.opcode == "while":
            times = trip_count(instruction, self.program.computations)
            if math.isnan(times):
                logging.warning("A loop whose length is not known is counted once: %s", self._line(instruction))
            walked.repeat(self.computation(dict(instruction.callees())["body"]), 1.0 if math.isnan(times) else times)
        elif instruction.opcode in ("call", "conditional"):
            branches = [self.computation(callee) for callee in callees]
            walked.repeat(max(branches, key=lambda one: one.seconds), 1.0)
        elif instruction.name in self.links:
            walked.add(*self.links[instruction.name][1:], self._line(instruction))
        elif inside := [link for callee in callees for link in self._inside(callee)]:
            # a collective that is fused with what follows it
            walked.add(*max(inside, key=lambda one: one[1])[1:], self._line(instruction))
        elif instruction.opcode not in COLLECTIVES:
            walked.add(*self.rates.seconds(self.costs.of(name, instruction)), self._line(instruction))
