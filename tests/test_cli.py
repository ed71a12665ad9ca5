import os
import subprocess
import sys

import pytest
from configurations import ROOT

CONFIG = "--config=configs/quickstart.py"
BAD = {  # arguments of experiments/train.py, and what the one line says
    "unknown field": (
        [CONFIG, "--config.moe.experts=4"],
        "moe.experts is not a field of a run: did you mean moe.num_experts?",
    ),
    "wrong type": ([CONFIG, "--config.moe.num_experts=many"], "--config.moe.num_experts=many"),
    "impossible value": ([CONFIG, "--config.moe.capacity_factor=nan"], "moe.capacity_factor=nan is not finite: give"),
    "missing file": (["--config=configs/missing.py"], "configs/missing.py"),
    "missing flag": ([], "--config"),
    "stray argument": ([CONFIG, "train.steps=5"], "'train.steps=5' is not a flag: write --flag=value"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Each bad command line with its process; all of them run at the same time."""
    environment = {**os.environ, "JAX_LOG_COMPILES": "1"}
    started = {}
    for name, (arguments, _) in BAD.items():
        workdir = tmp_path_factory.mktemp("runs") / "run"
        command = [sys.executable, "experiments/train.py", f"--workdir={workdir}", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started[name] = workdir, subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)
    return {name: (workdir, process.communicate(), process.returncode) for name, (workdir, process) in started.items()}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name, runs):
    workdir, (stdout, stderr), code = runs[name]
    assert code == 2, stderr
    [line] = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert BAD[name][1] in line
    assert "Traceback" not in stderr
    assert not stdout
    assert "ompil" not in stderr, "bad input is found before the first compile"
    assert not workdir.exists()
