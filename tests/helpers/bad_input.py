"""Many command lines of one script, each in a process of its own that begins where everything is imported already."""

import json
import os
import subprocess
import sys
from pathlib import Path

from configurations import ROOT

# Imports what the script does, then forks for each line of arguments: JAX has started nothing by then.
DRIVER = """
import ast, importlib, json, os, runpy, sys
script, folder = sys.argv[1:3]
cases = json.loads(sys.stdin.read())
for node in ast.parse(open(script).read()).body:
    if isinstance(node, ast.ImportFrom):
        importlib.import_module(node.module)
codes = {}
for number, arguments in enumerate(cases):
    child = os.fork()
    if not child:
        for stream, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(f"{folder}/{number}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        sys.argv = [script, *arguments]
        runpy.run_path(script, run_name="__main__")
        os._exit(0)
    codes[number] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps(codes))
"""


def ends(script: str, cases: dict[str, list[str]], folder: Path, environment: dict[str, str]) -> dict[str, tuple]:
    """{name: (exit code, standard output, standard error)} of `experiments/SCRIPT` with the arguments of each case."""
    command = [sys.executable, "-c", DRIVER, f"experiments/{script}", str(folder)]
    given = json.dumps(list(cases.values()))
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(command, cwd=ROOT, env=env, input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    codes = json.loads(done.stdout.splitlines()[-1])
    read = lambda number, name: (folder / f"{number}.{name}").read_text()
    return {
        name: (codes[str(number)], read(number, "stdout"), read(number, "stderr")) for number, name in enumerate(cases)
    }
