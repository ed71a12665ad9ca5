"""DeepSeek-V3's training step, real shapes, for 4,096 v5p chips, one 4,096-token sequence each.

Experts over 64 chips and weights over 256 leave pieces of 28, 24 and 2 rows, which fill no tile.
"""

import runpy
from pathlib import Path

import pytest

from moe_jax.audit.compile import build, compile_train_step
from moe_jax.audit.table import audit, table
from moe_jax.audit.targets import devices
from moe_jax.parallel.mesh import make_mesh
from moe_jax.resolve import resolve

pytestmark = pytest.mark.aot
CONFIG = Path(__file__).parents[2] / "configs" / "models" / "deepseek_v3.py"


def test_deepseek_v3_on_4096_chips():
    config = runpy.run_path(str(CONFIG))["get_config"]()
    config.data.batch_size = 4096
    there = devices("v5p:16x16x16")
    run = resolve(config, len(there))
    mesh = make_mesh(run.mesh, there)
    result = audit(run, mesh, build(lambda: compile_train_step(run, mesh)))
    print(table(result))
    assert result["violations"] == []
    assert result["compile_seconds"] < 300
    assert result["bytes_sent"] <= 370e9
    assert result["peak_memory_bytes"] <= 58e9
    assert all(row["asynchronous"] for row in result["collectives"] if row["kind"] == "all-to-all")
