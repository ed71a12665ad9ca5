"""Host memory of an import, in a process of its own: the weights, and little beside them."""

import json
import subprocess
import sys

import pytest

from moe_jax.benchmarks.importing import write_random
from moe_jax.interop.families import FAMILIES

ALLOWED = 1 << 30  # bytes beside the weights and the largest parameter
SCRIPT = """
import json, pathlib, re, sys
import jax
from moe_jax.interop.loaded_model import load_hf
jax.devices()
status = pathlib.Path("/proc/self/status")  # that of this process alone, while getrusage counts its parent too
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text())[1]) * 1024
before = peak()
leaves = jax.tree.leaves(jax.block_until_ready(load_hf(sys.argv[1], dtype="bfloat16").weights))
sizes = [leaf.nbytes for leaf in leaves]
print(json.dumps({"beside": peak() - before - sum(sizes), "weights": sum(sizes), "largest": max(sizes)}))
"""


@pytest.mark.slow
def test_an_import_needs_its_weights_and_one_parameter_more(tmp_path):
    folder = tmp_path / "model"
    write_random(folder, FAMILIES["mixtral"], d_model=1024, d_ff=3584, num_layers=16, experts=8, top_k=2)
    done = subprocess.run([sys.executable, "-c", SCRIPT, folder], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    bound = found["largest"] + ALLOWED
    assert found["weights"] > bound, "so that a second copy of all weights could not pass"
    assert found["beside"] + found["weights"] > 0, "so that something was measured"
    assert found["beside"] < bound, found
