"""The collective contract: the only communication that a compiled training step may contain (docs/parallelism.md).

    broken = violations(collectives(compiled.as_text(), mesh, run.moe.exchange_nodes), run, mesh)

Each broken clause is one line that names the collective and the lines of Python that it comes from. The contract holds
for AdamW. Adafactor takes row and column means, which are further reductions that the partitioner writes as it likes.
"""

import dataclasses
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from flax import nnx
from jax.sharding import Mesh

from moe_jax.audit.hlo import arrays
from moe_jax.audit.program import Collective
from moe_jax.config.layers import moe_segments
from moe_jax.config.schema import MoEConfig, RunConfig
from moe_jax.moe.dispatchers import dispatcher_of
from moe_jax.moe.observe import num_evidence, num_sums
from moe_jax.moe.routers import num_ranks
from moe_jax.moe.wires import Wire
from moe_jax.parallel.mesh import DATA, EXPERT, FSDP, TENSOR
from moe_jax.parallel.sharding import RULES
from moe_jax.tasks.registry import task_of
from moe_jax.train.state import build_model

PADDING = 1.01  # XLA for TPU pads a dimension that does not fill its tiles before it scatters it
LANES = 128  # numbers side by side in a register of a TPU
HLO_ITEMSIZE = {"bf16": 2, "f32": 4, "f64": 8}
ITEMSIZE = {"bfloat16": 2, "float32": 4, "float64": 8}


def violations(found: Sequence[Collective], run: RunConfig, mesh: Mesh) -> list[str]:
    """A line for each way in which `found` breaks the contract of a training step of `run` on `mesh`."""
    small, expected = small_elements(run, mesh), exchanges(run, mesh.devices.flat[0].platform)
    others = [rest for c in found if (rest := _without_exchanges(c, expected)) is not None]
    return [
        *_exchange(found, run, mesh, expected),
        *itertools.chain.from_iterable(_weights(c, run, mesh) for c in others),
        *_scatters(others, run, mesh),
        *_reductions(found, run, mesh, small),
        *(f"{_named(c)}: nothing of this size is passed on" for c in found if _passes_on_tokens(c, small)),
    ]


class Exchanged(NamedTuple):
    """How collectives of an exchange look in a compiled step."""

    kind: str
    axes: tuple[str, ...]
    bytes: int  # of the whole buffer on one device


def exchanges(run: RunConfig, platform: str) -> Counter[Exchanged]:
    """How often a step runs each collective that takes tokens to their experts or brings them back.

    XLA for CPU has no collectives in bfloat16, and sends float32, and no ragged all-to-all. Rows of a ragged one on TPU
    fill the lanes of a register.
    """
    mesh, expected = run.mesh, Counter[Exchanged]()
    if mesh.expert == 1:
        return expected
    sequences = run.data.batch_size // run.train.accumulate // (mesh.data * mesh.fsdp * mesh.expert)
    for part in moe_segments(run):
        groups = sequences * run.data.sequence_length // part.moe.group_size
        runs = run.train.accumulate * part.num_moe_layers
        for wire in dispatcher_of(part.moe).wires(mesh.expert, groups, run.model.remat):
            kind, rows = wire.kind, wire.rows
            if platform == "cpu" and wire.padded_rows:
                kind, rows = "all-to-all", wire.padded_rows
            columns = wire.columns or run.model.d_model
            if platform == "tpu" and kind == "ragged-all-to-all":
                columns = LANES * math.ceil(columns / LANES)
            size = rows * columns * _itemsize(wire, run, part.moe, platform)
            expected[Exchanged(kind, (wire.axis,), size)] += runs * wire.runs
    return expected


def _itemsize(wire: Wire, run: RunConfig, moe: MoEConfig, platform: str) -> int:
    """Bytes of a number that travels; gates are in float32 at least."""
    if wire.dtype in ("s32", "u32"):
        return 4
    if wire.dtype == "gates":
        return max(ITEMSIZE[run.model.dtype], 4)
    return max(ITEMSIZE[moe.exchange_dtype or run.model.dtype], 4 if platform == "cpu" else 0)


def _exchange(found: Sequence[Collective], run: RunConfig, mesh: Mesh, expected: Counter[Exchanged]) -> Iterator[str]:
    """Tokens are exchanged over `expert`, or the parts of it that a run names, and as often as the layers say."""
    axes = {exchanged.axes for exchanged in expected} or {(EXPERT,)}
    counts: dict[Exchanged, float] = defaultdict(float)
    for c in found:
        if "all-to-all" in c.kind and c.axes not in axes:
            yield f"{_named(c)}: tokens are exchanged over the axis {' and '.join(sorted(map('+'.join, axes)))} alone"
        for exchanged in _exchanged(c):
            counts[exchanged] += c.count
    for kind in ("all-to-all", "ragged-all-to-all"):
        actual = sum(count for exchanged, count in counts.items() if exchanged.kind == kind)
        wanted = sum(count for exchanged, count in expected.items() if exchanged.kind == kind)
        if actual != wanted:
            yield f"{actual:g} {kind}s in a step, not {wanted}"
        held, holds = (sum(e.bytes * n for e, n in counter.items() if e.kind == kind) for counter in (counts, expected))
        if held != holds:
            yield f"the {kind}s of a step hold {held:g} bytes, not {holds}"
    weights = {size * elements for elements in gathered_elements(run, mesh)[EXPERT] for size in HLO_ITEMSIZE.values()}
    for exchanged, wanted in expected.items():
        found_more = counts[exchanged] > wanted and exchanged.bytes not in weights
        if exchanged.kind in ("all-gather", "reduce-scatter") and (counts[exchanged] < wanted or found_more):
            yield f"{counts[exchanged]:g} {exchanged.kind}s of {exchanged.bytes} bytes in a step, not {wanted}"


def _exchanged(c: Collective) -> list[Exchanged]:
    """`c` as exchanges: one for each array that the compiler packed into a gather or a scatter, or the whole buffer."""
    if c.kind not in ("all-gather", "reduce-scatter"):
        return [Exchanged(c.kind, c.axes, int(c.bytes))]
    return [Exchanged(c.kind, c.axes, round(_bytes(shape) * _pieces(c))) for shape in c.shapes]


def _without_exchanges(c: Collective, expected: Counter[Exchanged]) -> Collective | None:
    """What is left of `c` without the arrays that the layers say; None: nothing."""
    parts = _exchanged(c)
    if len(parts) == 1:
        return None if parts[0] in expected else c
    kept = tuple(shape for shape, part in zip(c.shapes, parts, strict=True) if part not in expected)
    return dataclasses.replace(c, shapes=kept, bytes=_pieces(c) * sum(map(_bytes, kept))) if kept else None


def _weights(c: Collective, run: RunConfig, mesh: Mesh) -> Iterator[str]:
    """Only weights are gathered and scattered, and over one mesh axis at a time."""
    if c.kind not in ("all-gather", "reduce-scatter"):
        return
    if len(c.axes) != 1 or c.axes[0] not in (FSDP, EXPERT):
        yield f"{_named(c)}: weights are gathered and scattered over fsdp or expert, one at a time"
        return
    if any(shape.partition("[")[0] not in HLO_ITEMSIZE for shape in c.shapes):
        yield f"{_named(c)}: {c.dtype} is no weight's"
        return
    allowed = gathered_elements(run, mesh)[c.axes[0]]
    for shape in c.shapes:
        elements = _elements(shape) * _pieces(c)
        if not any(whole <= elements <= PADDING * whole for whole in allowed):
            yield f"{_named(c)}: {shape} is no weight's, whole or in part"


def _pieces(c: Collective) -> float:
    """The factor from a collective's shapes to its whole buffer."""
    return c.bytes / sum(map(_bytes, c.shapes))


def _scatters(found: Sequence[Collective], run: RunConfig, mesh: Mesh) -> Iterator[str]:
    """The gradient of each gathered weight is scattered once in a micro-batch, and that of a tied embedding twice."""
    for axis, allowed in scattered_elements(run, mesh).items():
        scatters = [c for c in found if c.kind == "reduce-scatter" and c.axes == (axis,)]
        elements = sum(c.count * _pieces(c) * sum(map(_elements, c.shapes)) for c in scatters)
        if elements > PADDING * allowed:
            yield f"{elements:g} elements of gradients are scattered over {axis}, more than the weights' {allowed}"


def _passes_on_tokens(c: Collective, small: int) -> bool:
    """Whether `c` is a collective-permute of more than statistics; XLA for TPU passes on some rows of padding."""
    return c.kind == "collective-permute" and sum(map(_elements, c.shapes)) * c.count > small


def _reductions(found: Sequence[Collective], run: RunConfig, mesh: Mesh, small: int) -> Iterator[str]:
    """Tokens are summed over `tensor`, the pieces of gradients over `data`, and all other sums are small.

    The elements of a whole step are counted together, since the compiler may join several sums into one.
    """
    over_data, over_tensor, large = 0.0, 0.0, 0.0
    evidence = run.train.accumulate * evidence_elements(run)
    for c in (c for c in found if c.kind == "all-reduce"):
        elements = sum(map(_elements, c.shapes))
        if not c.axes:
            yield f"{_named(c)}: its replica groups are those of no mesh axis"
        elif DATA in c.axes:
            over_data += c.count * elements
        elif c.axes == (TENSOR,):
            over_tensor += c.count * elements
        elif elements > small:
            large += c.count * elements
            if large > evidence + run.train.accumulate * small:  # what the bias looks at may be joined with the others
                yield f"{_named(c)}: {elements} elements are more than the {small} of statistics and norms"
    pieces = run.train.accumulate * (sum(local_elements(run, mesh)) + small) + evidence
    if over_data > pieces:
        yield f"{over_data:g} elements are summed over data, more than the {pieces} of the pieces that a device stores"
    allowed = tensor_elements(run) + run.train.accumulate * small
    if over_tensor > allowed:
        yield f"{over_tensor:g} elements are summed over tensor, more than {allowed}"


def tensor_elements(run: RunConfig) -> int:
    """Elements that a step may sum over `tensor`, beside small ones.

    They are a device's tokens after attention and after the feed-forward, the gradients of both, the tokens again where
    the forward pass is repeated, and a few numbers for each token's gates and softmax.
    """
    sequences = run.data.batch_size // (run.mesh.data * run.mesh.fsdp * run.mesh.expert)
    tokens = sequences * run.data.sequence_length
    passes, d_model = 2 if run.model.remat == "none" else 3, run.model.d_model
    output = d_model + 3 * passes  # the gradient of the head's input; maximum, sum and target of the softmax
    elements = tokens * (run.model.num_layers * 2 * passes * d_model + output)
    for part in moe_segments(run):
        dispatcher = dispatcher_of(part.moe)
        of_layer = tokens * num_ranks(part.moe)
        if dispatcher.splits == "slots":  # they are summed in place of the tokens, beside those of shared experts
            rows = tokens // part.moe.group_size * dispatcher.summed_rows()
            of_layer += (rows - (0 if part.moe.shared_d_ff else tokens)) * d_model
        elements += part.num_moe_layers * passes * of_layer
    return elements


def evidence_elements(run: RunConfig) -> int:
    """Elements that are summed in a micro-batch for the balance biases alone."""
    return sum(part.num_moe_layers * num_evidence(part.moe) for part in moe_segments(run))


def small_elements(run: RunConfig, mesh: Mesh) -> int:
    """Elements that may be summed over the whole mesh: the sums of all MoE layers, scalars, and vectors of weights.

    Vectors (norms' scales, biases, sinks) are weights that are not stored in pieces: their gradients are summed whole.
    """
    statistics = sum(part.num_moe_layers * num_sums(part.moe) for part in moe_segments(run))
    vectors = (weight for weight in _weights_of(run, mesh) if not any(RULES[name].stored for name in weight.axes))
    return statistics + sum(_piece(weight, mesh) for weight in vectors) + 64


def gathered_elements(run: RunConfig, mesh: Mesh) -> dict[str, set[int]]:
    """For each mesh axis, the numbers of elements that result when a stored weight is gathered over it."""
    sizes: dict[str, set[int]] = {FSDP: set(), EXPERT: set()}
    for weight in _weights_of(run, mesh):
        elements = math.prod(weight.shape[-len(weight.axes) :])
        for name in weight.axes:
            elements //= math.prod(mesh.shape[axis] for axis in RULES[name].split)
        for name in weight.axes:
            stored = [axis for axis in RULES[name].stored if mesh.shape[axis] > 1]
            whole = elements
            for axis in stored:  # the major axis is gathered last and results in the whole weight
                sizes[axis].add(whole)
                whole //= mesh.shape[axis]
    return sizes


def scattered_elements(run: RunConfig, mesh: Mesh) -> dict[str, int]:
    """For each mesh axis, the number of elements that go into the reduce-scatters of a step."""
    total = {FSDP: 0, EXPERT: 0}
    for weight in _weights_of(run, mesh):
        elements = math.prod(weight.shape)
        for name in weight.axes:
            elements //= math.prod(mesh.shape[axis] for axis in RULES[name].split)
        twice = 2 if run.model.tie_embeddings and "vocab_in" in weight.axes else 1
        for axis in itertools.chain.from_iterable(RULES[name].stored for name in weight.axes):  # major first
            if mesh.shape[axis] > 1:
                total[axis] += twice * elements * run.train.accumulate
                elements //= mesh.shape[axis]
    return total


def local_elements(run: RunConfig, mesh: Mesh) -> list[int]:
    """For each weight, the elements of the piece that a device stores, which has all layers of a segment."""
    return [_piece(weight, mesh) for weight in _weights_of(run, mesh)]


def _piece(weight: nnx.Param, mesh: Mesh) -> int:
    cuts = math.prod(mesh.shape[axis] for name in weight.axes for axis in RULES[name].split + RULES[name].stored)
    return math.prod(weight.shape) // cuts


def _weights_of(run: RunConfig, mesh: Mesh) -> list[nnx.Param]:
    model = build_model(task_of(run), mesh)
    bound = nnx.merge(model.graphdef, model.shapes, model.balance_bias)
    return [weight for _, weight in nnx.iter_graph(bound) if isinstance(weight, nnx.Param)]


def _elements(shape: str) -> int:
    """The number of elements of a shape that HLO prints as "bf16[8,4096]"."""
    dims = shape[shape.index("[") + 1 : shape.index("]")]
    return int(np.prod([int(n) for n in dims.split(",")], dtype=np.int64)) if dims else 1


def _bytes(shape: str) -> float:
    return arrays(shape)[0].bytes


def _named(c: Collective) -> str:
    return f"{c.kind} over {'+'.join(c.axes) or 'no axis'} ({c.op_name or 'unnamed'}; {c.source or 'source unknown'})"
