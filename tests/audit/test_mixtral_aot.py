"""Mixtral 8x7B's training step for 64 v5p chips, one 4,096-token sequence each: the floor of communication, kept.

A plain program of the same work, written by hand, sends 47.97 GB a device and step with `save_exchange`, 52.67 with
`full`, at a peak of 22.2 and 15.9 GB.
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
CONFIG = Path(__file__).parents[2] / "configs" / "mixtral_8x7b.py"


@pytest.mark.parametrize(
    ("remat", "chunks", "gigabytes", "exposed", "peak"),
    [("save_exchange", 1, 50, 10, 23), ("save_exchange", 2, 50, 4.5, 23), ("full", 1, 53, 12.5, 17)],
)
def test_mixtral_on_64_chips(remat, chunks, gigabytes, exposed, peak):
    config = runpy.run_path(str(CONFIG))["get_config"]()
    config.update_from_flattened_dict({"data.batch_size": 64, "model.remat": remat, "moe.exchange_chunks": chunks})
    there = devices("v5p:4x4x4")
    run = resolve(config, len(there))
    mesh = make_mesh(run.mesh, there)
    result = audit(run, mesh, build(lambda: compile_train_step(run, mesh)))
    print(table(result))
    assert result["violations"] == []
    assert result["bytes_sent"] <= gigabytes * 1e9
    assert result["exposed_bytes"] <= exposed * 1e9
    assert result["peak_memory_bytes"] <= peak * 1e9
    exchanged = [row for row in result["collectives"] if row["kind"] == "all-to-all"]
    assert all(row["asynchronous"] for row in exchanged)
    if chunks == 2:  # one half travels while the experts work on the other
        assert all(row["hidden"] == row["count"] for row in exchanged)
    summed = [row for row in result["collectives"] if row["kind"] == "all-reduce"]
    assert sum(row["bytes"] for row in summed) < 5e6
    assert "The collective contract holds." in table(result)
