"""Costs of instructions, times on links and the walk of a schedule, on small programs worked by hand."""

import math
import types

import jax
import numpy as np
import pytest
from configurations import run_of
from jax.sharding import AbstractMesh

from moe_jax.audit.answers import DECODE, PREFILL, Work, answers, overridden
from moe_jax.audit.compile import Built, build, compile_train_step
from moe_jax.audit.costs import Costs
from moe_jax.audit.estimate import as_record, estimate
from moe_jax.audit.hlo import parse
from moe_jax.audit.links import NETWORK, SWITCH, TORUS, Wires
from moe_jax.audit.program import Collective, collectives
from moe_jax.audit.schedule import Rates, Walk
from moe_jax.audit.table import audit, table
from moe_jax.config.rules import ConfigError
from moe_jax.parallel.chips import CHIPS, Chip, chip_of
from moe_jax.parallel.mesh import make_mesh
from moe_jax.resolve.counting import count

# A chip of 1 TFLOP/s and 1 GB/s, so that seconds are TFLOPs and gigabytes.
ROUND = Chip(flops=1e12, memory=1e9, bandwidth=1e9, link=1e9, network=1e8, clock=1e6, price=3.6, watts=100)
LINKS = (TORUS, SWITCH, NETWORK)
EXACT = {"reached": tuple((link, 1.0) for link in LINKS), "latency": tuple((link, 0.0) for link in LINKS)}


def shown(kind, size, group, axes=("expert",)):
    """A collective of so many bytes over a group."""
    return Collective(kind, axes, len(group), float(size), 1.0, False, (), 0.0, "f32", (), "", "", "it", tuple(group))


def grid(*lengths, slices=1):
    """Devices of a torus, row by row, slice by slice."""
    places = list(np.ndindex(*lengths))
    return [types.SimpleNamespace(coords=place, slice_index=part) for part in range(slices) for place in places]


HEAD = "HloModule m, is_scheduled=true\n\n"
BATCH, TURNED = "size=8 stride=7 lhs_dilate=8", "size=3 pad=2_2 rhs_reversal=1"


@pytest.mark.parametrize(
    ("line", "flops"),
    [
        # [64, 32] x [32, 16]
        ("f32[64,16] dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}", 2 * 64 * 32 * 16),
        ("f32[64,16] convolution(%a, %b), dim_labels=bf_io->bf", 2 * 64 * 32 * 16),
        # A batch of 8 products [4, 16] x [16, 5], whose kernel meets one row of the dilated input at a time.
        (f"f32[8,4,5] convolution(%c, %d), window={{{BATCH}}}, dim_labels=0bf_0io->0bf", 2 * 8 * 4 * 16 * 5),
        # [7, 16] x [16, 3, 5]: a kernel that is turned, whose places meet the only one of the input one after another.
        (f"f32[7,3,5] convolution(%e, %f), window={{{TURNED}}}, dim_labels=bf0_0io->b0f", 2 * 7 * 16 * 3 * 5),
        # rows of each group by its own matrix
        ("f32[64,16] ragged-dot(%a, %g, %h), lhs_contracting_dims={1}", 2 * 64 * 32 * 16),
        (
            '(f32[64,16], s8[9]) custom-call(%a, %b), custom_call_target="__cublas$gemm", '
            'backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}',
            2 * 64 * 32 * 16,
        ),
        ("f32[64,32] add(%a, %a)", 0),
    ],
)  # fmt: skip
def test_flops_by_hand(line, flops):
    inputs = {
        "a": "f32[64,32]", "b": "f32[32,16]", "c": "f32[8,4,16]", "d": "f32[8,16,5]", "e": "f32[7,16,1]",
        "f": "f32[3,16,5]", "g": "f32[4,32,16]", "h": "s32[4]",
    }  # fmt: skip
    body = "".join(f"  %{name} = {shape} parameter({i})\n" for i, (name, shape) in enumerate(inputs.items()))
    program = parse(f"{HEAD}ENTRY %main (x: f32[1]) -> f32[1] {{\n{body}  ROOT %it = {line}\n}}\n")
    assert Costs(program).of("main", program.computations["main"][-1]).flops == flops


MEMORY = f"""{HEAD}%slice (p: f32[10,1000], i: s32[]) -> f32[1,1000] {{
  %p = f32[10,1000] parameter(0)
  %i = s32[] parameter(1)
  ROOT %s = f32[1,1000] dynamic-slice(%p, %i, %i), dynamic_slice_sizes={{1,1000}}
}}

%update (p: f32[10,1000], u: f32[1,1000], i: s32[]) -> f32[10,1000] {{
  %p = f32[10,1000] parameter(0)
  %u = f32[1,1000] parameter(1)
  %i = s32[] parameter(2)
  ROOT %d = f32[10,1000] dynamic-update-slice(%p, %u, %i, %i)
}}

ENTRY %main (p: f32[10,1000], i: s32[]) -> f32[10,1000] {{
  %p = f32[10,1000] parameter(0)
  %i = s32[] parameter(1)
  %sliced = f32[1,1000] fusion(%p, %i), kind=kLoop, calls=%slice
  %sum = f32[1,1000]{{1,0:T(8,128)S(1)}} add(%sliced, %sliced)
  %kept = f32[1,1000] multiply(%sum, %sliced), backend_config={{"window_config":{{"estimated_cycles":"123"}}}}
  ROOT %updated = f32[10,1000] fusion(%p, %kept, %i), kind=kLoop, calls=%update
}}
"""


def test_bytes_of_slices_updates_and_memory_inside_the_chip():
    program = parse(MEMORY)
    costs, instructions = Costs(program), {i.name: i for i in program.computations["main"]}
    found = {name: costs.of("main", instructions[name]) for name in ("sliced", "sum", "kept", "updated", "p")}
    assert found["sliced"].bytes == pytest.approx(8000, abs=8)  # a row is read and written, and its number read
    assert found["sum"].bytes == 8000  # the result stays inside the chip
    assert found["kept"].bytes == 8000 and found["kept"].cycles == 123
    assert found["updated"].bytes == pytest.approx(8000, abs=8)
    assert math.isnan(found["sum"].cycles) and found["p"].bytes == 0


def test_times_on_a_switch_and_a_network():
    wires = Wires(ROUND, [None] * 16, 8, **EXACT)
    inside, across = list(range(8)), list(range(16))
    # All but its own eighth of 8 GB at 1 GB/s.
    assert wires.seconds(shown("all-gather", 8e9, inside)) == {SWITCH: 7}
    assert wires.seconds(shown("all-reduce", 8e9, inside)) == {SWITCH: 14}
    assert wires.seconds(shown("all-to-all", 8e9, inside)) == {SWITCH: 7}
    # Of 16 GB half crosses the network: gathered, each of eight ways of 0.1 GB/s carries an eighth of it.
    assert wires.seconds(shown("all-gather", 16e9, across)) == {SWITCH: 7, NETWORK: 10}
    assert wires.seconds(shown("all-to-all", 16e9, across)) == {SWITCH: 7, NETWORK: 80}
    assert wires.seconds(shown("all-gather", 16e9, [3])) == {}
    slower = Wires(ROUND, [None] * 16, 8).seconds(shown("all-gather", 16e9, across))
    assert slower == {SWITCH: pytest.approx(7 / 0.82 + 1e-5), NETWORK: pytest.approx(10 / 0.9 + 2e-5)}
    ragged = Wires(ROUND, [None] * 8, 8, **EXACT).seconds(shown("ragged-all-to-all", 8e9, inside))
    assert ragged == {SWITCH: pytest.approx(7 / 0.02)}


def test_times_on_a_torus():
    chip = ROUND._replace(dims=3)
    wires = Wires(chip, grid(4, 4, 2), 1, **EXACT)
    at = lambda x, y, z: (x * 4 + y) * 2 + z
    ring, line = [at(0, y, 0) for y in range(4)], [at(0, 0, z) for z in range(2)]
    plane = [at(x, y, 0) for x in range(4) for y in range(4)]
    # A ring of four has two ways for three quarters of 8 GB, a line of two one way for the half.
    assert wires.seconds(shown("all-gather", 8e9, ring)) == {TORUS: 3}
    assert wires.seconds(shown("all-gather", 8e9, line)) == {TORUS: 4}
    assert wires.seconds(shown("all-gather", 8e9, plane)) == {TORUS: 8 * 15 / 16 / 4}
    # b D / 8 on a ring, twice that on a line.
    assert wires.seconds(shown("all-to-all", 8e9, ring)) == {TORUS: 4}
    assert wires.seconds(shown("all-to-all", 8e9, line)) == {TORUS: 4}
    assert wires.seconds(shown("collective-permute", 8e9, ring[:2])) == {TORUS: 8}
    # Two slices: half of what is gathered crosses the network, a fourth of it on each of four ways.
    two = Wires(chip, grid(4, 4, 2, slices=2), 1, **EXACT)
    both = [*ring, *(place + 32 for place in ring)]
    assert two.seconds(shown("all-gather", 8e9, both)) == {TORUS: 3, NETWORK: 10}
    # A v5e or v6e slice closes to a ring from 16 on.
    flat = Wires(chip._replace(dims=2), grid(16, 4), 1, **EXACT)
    assert flat.seconds(shown("all-gather", 16e9, [4 * x for x in range(16)])) == {TORUS: 7.5}
    assert flat.seconds(shown("all-gather", 16e9, [0, 1, 2, 3])) == {TORUS: 12}


# A loop of three: 2 GFLOP (2 ms) beside a gather of 4 MB over two devices (2 ms on the link), which begins before it.
# Then 3 MB are added (9 ms: read twice, written once), an exchange blocks (3 ms), and the entry adds 1 MB (3 ms).
WALKED = f"""{HEAD}%body (t: (s32[], f32[1000,1000])) -> (s32[], f32[1000,1000]) {{
  %t = (s32[], f32[1000,1000]) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = f32[1000,1000] get-tuple-element(%t), index=1
  %gather-start = (f32[500,1000], f32[1000,1000]) all-gather-start(%x), replica_groups={{{{0,1}}}}, dimensions={{0}}
  %product = f32[1000,1000]{{1,0:S(1)}} dot(%x, %x), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
  %gather-done = f32[1000,1000] all-gather-done(%gather-start)
  %exchanged = f32[1500,1000] all-to-all(%gather-done), replica_groups={{{{0,1}}}}, dimensions={{0}}
  ROOT %out = (s32[], f32[1000,1000]) tuple(%i, %product)
}}

%condition (t: (s32[], f32[1000,1000])) -> pred[] {{
  %t = (s32[], f32[1000,1000]) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %n = s32[] constant(3)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}}

ENTRY %main (x: f32[1000,1000]) -> f32[250,1000] {{
  %x = f32[1000,1000] parameter(0)
  %zero = s32[] constant(0)
  %t = (s32[], f32[1000,1000]) tuple(%zero, %x)
  %loop = (s32[], f32[1000,1000]) while(%t), condition=%condition, body=%body
  %y = f32[250,1000] parameter(1)
  ROOT %sum = f32[250,1000] add(%y, %y)
}}
"""


def walked(rates=1.0, **changes):
    program, mesh = parse(WALKED), AbstractMesh((2,), ("expert",))
    wires = Wires(ROUND._replace(**changes), [None] * 2, 8, **EXACT)
    return estimate(program, collectives(WALKED, mesh), wires, rates, rates)


def test_the_walk_by_hand():
    found = walked()
    # The product reads 4 MB twice (8 ms) and takes 2 ms to compute; the gather (2 ms) is done by then.
    assert found.schedule.seconds == pytest.approx(3 * (0.008 + 0.003) + 0.003)
    assert found.schedule.spent == pytest.approx({"memory": 3 * 0.008 + 0.003, "all-to-all": 3 * 0.003})
    assert found.flops == 3 * 2e9 and found.link_seconds == pytest.approx({SWITCH: 3 * 0.005})
    assert found.lower == pytest.approx(found.bytes / 1e9)
    assert found.upper == pytest.approx(0.006 + found.bytes / 1e9 + 0.015)
    assert (
        found.bytes == pytest.approx(3 * 8e6 + 3e6, rel=1e-5) and found.lower <= found.schedule.seconds <= found.upper
    )
    assert found.compiler is None and found.seconds == found.schedule.seconds


def test_a_gather_that_takes_longer_than_what_runs_beside_it_is_waited_for():
    found = walked(link=1e8, bandwidth=1e12)
    # 20 ms of which 2 ms are hidden behind the product, then 30 ms.
    assert found.schedule.spent["all-gather"] == pytest.approx(3 * 0.018)
    assert found.schedule.spent["all-to-all"] == pytest.approx(3 * 0.030)
    assert found.schedule.spent["matrix products"] == pytest.approx(3 * 0.002)


def test_what_is_reached_of_the_peaks():
    assert walked(0.5, link=1e12).schedule.seconds == pytest.approx(2 * walked(link=1e12).schedule.seconds, rel=1e-3)


def test_two_collectives_share_a_link():
    text = f"""{HEAD}ENTRY %main (x: f32[1000,1000]) -> f32[1000,1000] {{
  %x = f32[500,1000] parameter(0)
  %a = (f32[500,1000], f32[1000,1000]) all-gather-start(%x), replica_groups={{{{0,1}}}}, dimensions={{0}}
  %b = (f32[500,1000], f32[1000,1000]) all-gather-start(%x), replica_groups={{{{0,1}}}}, dimensions={{0}}
  %a-done = f32[1000,1000] all-gather-done(%a)
  ROOT %b-done = f32[1000,1000] all-gather-done(%b)
}}
"""
    found = estimate(parse(text), collectives(text, AbstractMesh((2,), ("expert",))), Wires(ROUND, [0, 0], 8, **EXACT))
    assert found.schedule.seconds == pytest.approx(0.004)


BRANCHED = f"""{HEAD}%short (x: f32[1000]) -> f32[1000] {{
  %x = f32[1000] parameter(0)
  ROOT %y = f32[1000] negate(%x)
}}

%long (x: f32[1000]) -> f32[1000] {{
  %x = f32[1000] parameter(0)
  %y = f32[1000] negate(%x)
  ROOT %z = f32[1000] negate(%y)
}}

%more (t: (s32[], f32[1000])) -> pred[] {{
  %t = (s32[], f32[1000]) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %n = s32[] get-tuple-element(%t), index=0
  ROOT %less = pred[] compare(%i, %n), direction=LT
}}

%body (t: (s32[], f32[1000])) -> (s32[], f32[1000]) {{
  %t = (s32[], f32[1000]) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = f32[1000] get-tuple-element(%t), index=1
  %y = f32[1000] negate(%x)
  ROOT %out = (s32[], f32[1000]) tuple(%i, %y)
}}

ENTRY %main (x: f32[1000], i: s32[]) -> (s32[], f32[1000]) {{
  %x = f32[1000] parameter(0)
  %i = s32[] parameter(1)
  %chosen = f32[1000] conditional(%i, %x, %x, %x), branch_computations={{%long, %short, %short}}
  %t = (s32[], f32[1000]) tuple(%i, %chosen)
  ROOT %loop = (s32[], f32[1000]) while(%t), condition=%more, body=%body
}}
"""


def test_the_longest_branch_counts_and_a_loop_of_unknown_length_once(caplog):
    found = estimate(parse(BRANCHED), [], Wires(ROUND, [None], 1, **EXACT), memory=1.0)
    assert found.schedule.seconds == pytest.approx((2 + 1) * 8e-6)
    assert "A loop whose length is not known is counted once" in caplog.text
    assert math.isfinite(found.lower) and found.bytes >= 4 * 8000


def test_the_compilers_cycles():
    program = parse(MEMORY)
    rates = Rates(ROUND, cycles=True)
    seconds = Walk(program, Costs(program), rates, {}).whole().seconds
    assert seconds == pytest.approx(3 * 8e-6 + 123e-6, abs=1e-7)  # three of four have none: their bytes count
    found = estimate(program, [], Wires(ROUND, [None], 1, **EXACT), memory=1.0)
    assert found.compiler.seconds == pytest.approx(seconds)
    assert found.without_cycles == pytest.approx(24 / (24 + 123), abs=1e-3)


def test_answers_by_hand():
    run = run_of({"model.num_layers": 1, "data.batch_size": 4, "data.sequence_length": 128})
    found, built = walked(), Built(WALKED, 5e8, 1e8, 1.0)
    result = answers(run, Work(), built, ROUND, found)
    tokens, seconds = 4 * 128, found.seconds
    assert result["fits"] and result["tokens_per_second"] == pytest.approx(tokens / seconds)
    assert result["cost_per_million_tokens"] == pytest.approx(3.6 / 3600 * seconds / tokens * 1e6)
    assert result["kilowatt_hours_per_million_tokens"] == pytest.approx(0.1 / 3600 * seconds / tokens * 1e6)
    assert result["bottleneck"] == "memory" and result["exchange_share"] == pytest.approx(0.009 / seconds)
    weights, scores = 4 * 64 * 64 + 2 * 64 * 256 + 64 * 264, 2 * 64 * 128
    assert result["model_flops_per_device"] == tokens * (6 * weights + 3 * scores)
    large = answers(run, Work(), built._replace(peak_memory=2e9), ROUND, found)
    assert not large["fits"]
    # A token that is decoded sees 256 others; one of a prompt half of them on average; forward alone.
    decoded = Work(DECODE, places=8, length=256)
    assert decoded.tokens(run) == 8 and decoded.model_flops(run) == 8 * (2 * weights + 2 * 2 * scores)
    prompt = Work(PREFILL, length=256, piece=64)
    assert prompt.tokens(run) == 64 and prompt.model_flops(run) == 64 * (2 * weights + 2 * scores)


def test_a_step_that_does_not_fit_is_a_result():
    message = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Used 37.00G of 31.25G hbm. Exceeded by 5.75G."

    def refused():
        raise jax.errors.JaxRuntimeError(message)

    run = run_of({})
    built = build(refused)
    assert built.text == "" and built.peak_memory == 37 * 2**30
    result = audit(run, make_mesh(run.mesh), built, Wires(CHIPS["TPU v6e"], grid(1, 1), 1))
    assert result["fits"] is False and "step_time_s" not in result
    assert "**It does not fit**: 39.7 of 34.4 GB, 5.4 GB too much." in table(result)


def test_other_constants():
    assert overridden(ROUND, {"price": 2.5, "link": 5.0}) == ROUND._replace(price=2.5, link=5.0)
    known = "prize is no constant of a chip: use one of flops"
    for constants, message in (({"prize": 1.0}, known), ({"link": 0.0}, "link=0.0: give more than 0")):
        with pytest.raises(ConfigError, match=message):
            overridden(ROUND, constants)


def test_every_chip_can_be_audited():
    for name, chip in CHIPS.items():
        assert chip.flops and chip.memory and chip.bandwidth and chip.link and chip.network, name
        assert bool(chip.dims) == bool(chip.clock) == name.startswith("TPU")
    # FLOP/s are those of whole matrix units: 128 x 128 or 256 x 256 multiply-adds in a cycle.
    for name in ("TPU v4", "TPU v5e", "TPU v5p", "TPU v6e"):
        units = CHIPS[name].flops / CHIPS[name].clock / (2 * 128 * 128)
        assert units == pytest.approx(round(units), rel=0.01), name
    assert chip_of("TPU v5 lite") == CHIPS["TPU v5e"] and chip_of("NVIDIA H1000") is None


def test_the_record_is_plain():
    record = as_record(walked())
    assert record["schedule"]["seconds"] == record["step_time_s"] and record["compiler"] is None
    assert record["step_time_lower_s"] < record["step_time_upper_s"]


MOE = {"moe.num_experts": 4, "moe.group_size": 128}


@pytest.mark.parametrize(
    ("fields", "factor"),
    [
        ({}, 0),
        ({**MOE, "moe.top_k": 1, "moe.capacity_factor": 1.0}, 0),
        ({**MOE, "moe.top_k": 2, "moe.router": "top_k", "moe.capacity_factor": 2.0}, 1),
    ],
    ids=["dense", "as many slots as choices", "twice as many"],
)
def test_flops_of_a_step_of_training_are_those_of_the_closed_formula(fields, factor):
    """To the last FLOP; `factor` times the experts' own for slots beyond a token's choices."""
    sizes = {"data.batch_size": 4, "data.sequence_length": 128, "model.num_layers": 2, "model.remat": "none"}
    run = run_of({**sizes, **fields})
    mesh = make_mesh(run.mesh)
    text = build(lambda: compile_train_step(run, mesh)).text
    found = estimate(parse(text), collectives(text, mesh), Wires(ROUND, [None], 1))
    tokens, experts = 4 * 128, 2 * run.moe.top_k * 2 * 64 * 256  # multiply-adds of a token's experts in two layers
    assert found.flops == tokens * (count(run).flops_per_token + factor * 6 * experts)


def test_bytes_of_the_exchange_are_those_of_the_closed_formula():
    """Four exchanges a layer of all slots, of which each of two devices sends half: on a switch of 1 GB/s."""
    run = run_of({**MOE, "data.batch_size": 4, "data.sequence_length": 128, "model.num_layers": 2, "mesh.expert": 2}, 2)
    mesh = make_mesh(run.mesh)
    text = build(lambda: compile_train_step(run, mesh)).text
    exchanged = [c for c in collectives(text, mesh) if c.kind == "all-to-all"]
    wires = Wires(ROUND, list(mesh.devices.flat), 8, **EXACT)
    slots, groups = 40, 2  # 1.25 * 128 / 4, and groups of a device
    seconds = sum(c.count * wires.seconds(c)[SWITCH] for c in exchanged)
    assert seconds == pytest.approx(2 * 4 * groups * 4 * slots * 64 * 4 / 2 / 1e9)
