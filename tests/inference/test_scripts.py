"""generate.py and evaluate.py --tasks as a user meets them."""

import json
import os
import subprocess
import sys

import pytest
from bad_input import ends
from configurations import ROOT

FLAGS = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
GOLDEN = "tests/interop/golden"
MIXTRAL = f"--from_hf={GOLDEN}/mixtral"
PROMPTS = '{"ids": [1, 2, 3], "name": "a"}\n{"ids": [4], "max_tokens": 2}\n{"ids": []}\n'
QUESTIONS = '{"context": "a", "choices": ["b", "c"], "answer": 0}\n'
BAD = {  # arguments of generate.py, and what the one line says
    "no model": (["--prompt=a"], "give one of --workdir=DIR and --from_hf=FOLDER"),
    "no prompt": ([MIXTRAL], "give one of --prompt=TEXT and --prompts=FILE"),
    "negative temperature": ([MIXTRAL, "--prompt=a", "--temperature=-1"], "--temperature=-1.0: give from 0 to 1e30"),
    "top_p of nothing": ([MIXTRAL, "--prompt=a", "--top_p=0"], "--top_p=0.0: give more than 0, at most 1"),
    "no places": ([MIXTRAL, "--prompt=a", "--places=0"], "--places=0: give a positive integer"),
    "places the mesh does not divide": (
        [MIXTRAL, "--prompts=PROMPTS", "--mesh=expert=2", "--places=3"],
        "--places=3 does not divide over the 2 parts that the mesh cuts a batch into: give a multiple of 2",
    ),
    "more places than memory": ([MIXTRAL, "--prompt=a", "--places=999999999"], "GB for their caches, and "),
    "no tokenizer": ([MIXTRAL, "--prompt=a"], "there is no tokenizer.json beside the weights: give prompts as ids"),
    "no folder": (["--from_hf=missing", "--prompt=a"], "cannot be read (No such file or directory): give a Hugging"),
    "a type there is not": (
        [MIXTRAL, "--prompt=a", "--dtype=int4"],
        "--dtype='int4' is unknown: choose one of float32",
    ),
    "a comparison without costs": ([MIXTRAL, "--prompt=a", "--compare"], "--compare is for --cost: leave it out"),
    "a price that is none": ([MIXTRAL, "--prompt=a", "--cost", "--price_per_hour=nan"], "--price_per_hour=nan is not"),
    "no folder for answers": ([MIXTRAL, "--prompt=a", "--output=/proc/x/y"], "--output=/proc/x cannot be written"),
    "answers over the prompts": ([MIXTRAL, "--prompts=PROMPTS", "--output=PROMPTS"], "give a file of its own"),
    "a stop of nothing": ([MIXTRAL, "--prompt=a", "--stop="], "--stop= is empty: give a text, or leave it out"),
    "bytes that are no text": ([MIXTRAL, b"--prompt=\xff"], "--prompt has characters that UTF-8 cannot write"),
    "no run": (["--workdir=tests", "--prompt=a"], "--workdir=tests holds no run (config.json is missing)"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    (folder / "prompts.jsonl").write_text(PROMPTS)
    (folder / "questions.jsonl").write_text(QUESTIONS)
    return folder


def run(script, *arguments):
    environment = {**os.environ, "XLA_FLAGS": FLAGS, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, f"experiments/{script}", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def ended(files, tmp_path_factory):
    named = lambda argument: os.fsdecode(argument).replace("PROMPTS", str(files / "prompts.jsonl"))
    lines = {name: list(map(named, arguments)) for name, (arguments, _) in BAD.items()}
    return ends("generate.py", lines, tmp_path_factory.mktemp("said"), {"XLA_FLAGS": FLAGS})


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name, ended):
    code, _, stderr = ended[name]
    assert code == 2, stderr
    last = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(last) == 1 and BAD[name][1] in last[0], stderr
    assert "Traceback" not in stderr


def test_answers_and_their_cost(files):
    output = files / "answers.jsonl"
    ended = run(
        "generate.py", MIXTRAL, f"--prompts={files / 'prompts.jsonl'}", f"--output={output}", "--places=2",
        "--mesh=expert=2", "--max_tokens=4", "--length=32",
    )  # fmt: skip
    assert ended.returncode == 2, ended.stderr  # one is empty
    assert "Line 3 of the prompts is left out: a prompt is empty" in ended.stderr
    answers = {one.get("name"): one for one in map(json.loads, output.read_text().splitlines())}
    assert len(answers["a"]["tokens"]) == 4 and len(answers[None]["tokens"]) == 2
    good = files / "good.jsonl"
    good.write_text("\n".join(PROMPTS.splitlines()[:2]))
    ended = run(
        "generate.py", MIXTRAL, f"--prompts={good}", f"--output={output}", "--cost", "--compare", "--length=32",
        "--max_tokens=8", "--price_per_hour=2",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    costs = json.loads((files / "cost.json").read_text())
    assert list(costs) == ["this model", "dense, as many parameters", "dense, as many a token"]
    ours, total, active = costs.values()
    # 3 of 6 experts of 3 matrices of 16 x 24 in 3 layers, in float32, are not read.
    assert total["weight_bytes_per_step"] - ours["weight_bytes_per_step"] == pytest.approx(
        4 * 3 * 3 * 3 * 16 * 24, rel=0.1
    )
    assert active["weight_bytes_per_step"] == pytest.approx(ours["weight_bytes_per_step"], rel=0.1)
    assert ours["experts_by_batch"]["0"] == ours["experts_by_batch"]["1"] == 0.5
    assert ours["imbalance"] == pytest.approx(2) and ours["dollars_per_million_tokens"] == pytest.approx(
        2e6 / 3600 / ours["decode_tokens_per_second"]
    )


def test_tasks(files):
    """The fixtures have no tokenizer: the questions are read, and the first text is refused."""
    ended = run("evaluate.py", MIXTRAL, f"--tasks={files / 'questions.jsonl'}")
    assert ended.returncode == 2 and "there is no tokenizer.json" in ended.stderr


def test_flags_without_tasks(tmp_path):
    bad = {
        "without": ([MIXTRAL], "--from_hf is for --tasks: leave it out"),
        "of nothing": ([MIXTRAL, "--tasks="], "--tasks= names no file: give one"),
        "two of a name": ([MIXTRAL, "--tasks=a/b.jsonl,c/b.jsonl"], "--tasks names two files 'b', whose results would"),
        "nothing": ([], "error: --config is missing: give it"),
    }
    ended = ends("evaluate.py", {name: arguments for name, (arguments, _) in bad.items()}, tmp_path, {})
    for name, (_, wanted) in bad.items():
        code, _, stderr = ended[name]
        assert code == 2 and wanted in stderr, stderr
