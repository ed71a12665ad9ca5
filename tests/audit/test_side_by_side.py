"""Several targets, each in a process of its own, and the program that a work directory keeps."""

import gzip
import json

import pytest
from configurations import run_of

from moe_jax.audit import cache
from moe_jax.audit.answers import Work
from moe_jax.audit.compile import Built
from moe_jax.audit.side_by_side import audit_each, table
from moe_jax.parallel.mesh import make_mesh

# Stands for experiments/audit.py: what it does is in the target's name.
SCRIPT = """
import json, pathlib, sys, time
given = dict(one.lstrip("-").split("=", 1) for one in sys.argv[1:])
if "slow" in given["target"]: time.sleep(60)
if "bad" in given["target"]: sys.exit("I0000 of the library\\nerror: target=bad: no chip: use one of v4")
if "killed" in given["target"]: sys.exit(9)
price, speed = {"cheap:1": (1.0, 5.0), "dear:1": (9.0, 9.0), "free:1": (None, 7.0)}[given["target"]]
record = {"devices": 8, "peak_memory_bytes": 5e9, "chip_memory_bytes": 8e9, "fits": True, "step_time_s": 2.0,
          "tokens_per_second_per_device": speed, "utilization": 0.5, "idle_share": 0.25, "exchange_share": 0.125,
          "cost_per_million_tokens": price, "option": given["option"]}
pathlib.Path(given["workdir"], "audit.json").write_text(json.dumps(record))
"""


def test_each_target_is_a_process_that_may_fail_alone(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    targets = ["dear:1", "bad:1", "slow:1", "cheap:1", "killed:1", "free:1"]
    found = audit_each(script, ["--option=x"], targets, tmp_path, 5.0)
    assert [one["target"] for one in found] == targets
    assert [one.get("option") for one in found] == ["x", None, None, "x", None, "x"]
    lines = table(found).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:5]] == ["cheap:1", "dear:1", "free:1"]
    assert lines[2].split("|")[-2].strip() == "1" and lines[4].split("|")[-2].strip() == ""
    rest = [line for line in lines[5:] if line]
    assert rest == [
        "bad:1: target=bad: no chip: use one of v4",
        "slow:1: it takes longer than --limit_s=5: raise it, or take fewer devices",
        "killed:1: it ended with code 9",
    ]


def test_what_does_not_fit_is_said():
    found = [{"target": "v6e:2x2", "peak_memory_bytes": 40e9, "chip_memory_bytes": 34e9, "fits": False}]
    assert table(found).splitlines()[-1] == "v6e:2x2: does not fit, 40.0 of 34.0 GB"


@pytest.fixture
def compiled(monkeypatch):
    """Counts how often something is compiled."""
    calls = []
    built = Built("HloModule m", 5.0, 3.0, 1.0)
    monkeypatch.setattr(cache, "build", lambda compile_step: calls.append(1) or built)
    return calls


def test_a_second_look_compiles_nothing(compiled, tmp_path, monkeypatch):
    run = run_of({})
    mesh = make_mesh(run.mesh)
    look = lambda run=run, target="v4:2x2x1", work=Work(): cache.cached(tmp_path, target, run, mesh, work)  # noqa: B008
    assert look() == look() == Built("HloModule m", 5.0, 3.0, 1.0) and len(compiled) == 1
    for number, changed in enumerate(
        ({"run": run_of({"model.d_ff": 32})}, {"target": "v5p:2x2x1"}, {"work": Work("decode", 4, 8)}), start=2
    ):
        look(**changed)
        assert len(compiled) == number
    look()
    monkeypatch.setattr(cache, "source_hash", lambda: "other code")
    look()
    assert len(compiled) == 6
    for damaged in (b"", b"x", gzip.compress(json.dumps({"key": 1}).encode()), gzip.compress(b"[]")):
        (tmp_path / cache.PROGRAM).write_bytes(damaged)
        assert look().peak_memory == 5.0
    assert len(compiled) == 10
