"""Files with a get_sweep() as users write them: what fails in one, and numbers of other libraries.

They are loaded in a process of their own, as by a user, since the tests' type checker would refuse them first.
"""

import json
import os
import subprocess
import sys

import pytest
from tiny_sweep import ROOT

from moe_jax.sweep.design import grid

NAMES = "import numpy as np\nfrom moe_jax.sweep.design import *\nfrom moe_jax.sweep.derive import *\n"
BODIES = {  # what get_sweep() does, in line 6, and what the one line says after its place
    "{}[3]": "get_sweep() fails (KeyError: 3): correct it",
    "exec('raise AssertionError')": "get_sweep() fails (AssertionError): correct it",
    "open('/no/such/file')": "get_sweep() fails (FileNotFoundError: [Errno 2] No such file or directory: ",
    "Sweep([{}], seeds=3)": "Sweep(seeds=3) is no sequence: give one, such as seeds=(0, 1, 2)",
    "Sweep([{}], seeds=np.int64(3))": "Sweep(seeds=np.int64(3)) is no sequence: give one",
    "Sweep([{}], seeds=(0.5,))": "Sweep(seeds=...) has 0.5: give whole numbers, such as seeds=(0, 1, 2)",
    "Sweep([{}], seeds=(True,))": "Sweep(seeds=...) has True: give whole numbers",
    "Sweep([{}], seeds='12')": "Sweep(seeds='12') is no sequence",
    "Sweep({'moe.top_k': 1})": "Sweep(points={'moe.top_k': 1}) is no sequence: give one, such as points=grid",
    "Sweep(['moe.top_k'])": "Sweep(points=...) has 'moe.top_k': a point is a dict of fields",
    "Sweep([{}], baseline=[1])": "Sweep(baseline=...) has [1]: a point is a dict of fields",
    "Sweep([{}], derive=fixed_group())": "Sweep(derive=<function",
    "Sweep([{}], derive=['fixed_group'])": "Sweep(derive=...) has 'fixed_group': give what fixed_group() or",
    "Sweep(grid({'moe.top_k': 2}))": "grid: moe.top_k=2 is no sequence of values: give one, such as (2,)",
    "Sweep(grid({'moe.router': 'soft'}))": "grid: moe.router='soft' is no sequence of values: give one, such as ('so",
    "equal_flops({}, multiple_of=0)": "equal_flops: multiple_of=0 must be positive: give at least 1",
    "equal_flops({}, multiple_of=1.5)": "equal_flops: multiple_of=1.5 is no whole number",
    "equal_total_params({}, -2)": "equal_total_params: multiple_of=-2 must be positive",
    "equal_flops(3)": "equal_flops: to=3 is no dict of fields: give one, such as {'moe.num_experts': 0}",
    "fixed_group(0)": "fixed_group: min_slots=0 must be positive",
    "quasi_random({}, 0)": "quasi_random: num=0 must be positive",
    "quasi_random({}, 1.5)": "quasi_random: num=1.5 is no whole number",
    "quasi_random({'a': (0, 1)}, 1)": "quasi_random: a=(0, 1) is no range: give Uniform, LogUniform or Choice",
    "quasi_random({'a': Uniform(2, 1)}, 1)": "quasi_random: a=Uniform(low=2, high=1): give low < high",
    "quasi_random({'a': LogUniform(0, 1)}, 1)": "quasi_random: a=LogUniform(low=0, high=1): give 0 < low < high",
    "quasi_random({'a': Choice(())}, 1)": "quasi_random: a=Choice(values=()): give a sequence of values",
}  # fmt: skip
NUMPY = """
Sweep(
    grid({
        "moe.num_experts": np.array([4, 8]),
        "train.learning_rate": np.geomspace(0.25, 0.5, 2),
        "moe.top_k": [np.int8(1)],
        "moe.num_experts_by_layer": [(np.int64(4), np.int64(8))],
        "moe.router": np.array(["switch"]),
    }),
    seeds=np.arange(2),
    baseline={"moe.num_experts": np.int64(4)},
)
"""
LOAD = """
import json, pathlib, sys
from moe_jax.sweep.design import load_sweep
said = []
for path in sys.argv[1:]:
    try:
        sweep = load_sweep(pathlib.Path(path))
        said.append([repr(sweep.points), repr(sweep.seeds), repr(sweep.baseline)])
    except ValueError as error:
        said.append(str(error))
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """{what get_sweep() returns: (the file, what loading it says)}."""
    directory = tmp_path_factory.mktemp("files")
    paths = {}
    for number, body in enumerate([*BODIES, NUMPY]):
        paths[body] = directory / f"{number}.py"
        paths[body].write_text(f"{NAMES}\ndef get_sweep():\n    return {body.strip()}\n")
    paths["at its start"] = directory / "start.py"
    paths["at its start"].write_text("\n1 / 0\n")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", LOAD, *map(str, paths.values())]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return dict(zip(paths, zip(paths.values(), json.loads(answer.stdout), strict=True), strict=True))


@pytest.mark.parametrize("body", BODIES)
def test_what_fails_is_one_line_with_its_place(loaded, body):
    path, said = loaded[body]
    assert said.startswith(f"--config={path}, line 6: {BODIES[body]}")
    assert "\n" not in said


def test_a_file_that_fails_itself_is_one_line_too(loaded):
    path, said = loaded["at its start"]
    assert said == f"--config={path}, line 2: the file fails (ZeroDivisionError: division by zero): correct it"


def test_numbers_of_numpy_are_numbers(loaded):
    """Cells, names and configurations are those of Python's numbers."""
    fields = {
        "moe.num_experts": (4, 8),
        "train.learning_rate": (0.25, 0.5),
        "moe.top_k": (1,),
        "moe.num_experts_by_layer": ((4, 8),),
        "moe.router": ("switch",),
    }
    assert loaded[NUMPY][1] == [repr(grid(fields)), "(0, 1)", "{'moe.num_experts': 4}"]
