import json
import os
import sys
import time

import pytest
from tiny_sweep import DEADLINE, ONE_DEVICE, ROOT, cells_of, lines, wait_until, write_text

from moe_jax.sweep import launchers
from moe_jax.sweep.launchers import LocalProcesses, Submitit, share_of_cores, share_of_gpus, visible_gpus
from moe_jax.sweep.ledger import Ledger


@pytest.mark.parametrize(
    "workers, shares",
    [(1, [[0, 1, 4, 5, 6]]), (2, [[0, 1], [4, 5, 6]]), (5, [[0], [1], [4], [5], [6]])],
)
def test_workers_share_the_cores_that_this_process_may_use(monkeypatch, workers, shares):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {6, 0, 4, 1, 5}, raising=False)
    assert [share_of_cores(worker, workers) for worker in range(workers)] == shares


def test_more_workers_than_cores_take_turns(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    assert [share_of_cores(worker, 3) for worker in range(3)] == [[0], [1], [0]]


def test_a_system_without_pinning_is_left_alone(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert share_of_cores(0, 2) == []


def test_workers_share_the_gpus():
    assert share_of_gpus(1, 2, list("4567")) == {"CUDA_VISIBLE_DEVICES": "6,7"}
    assert [share_of_gpus(worker, 4, list("4567"))["CUDA_VISIBLE_DEVICES"] for worker in range(4)] == list("4567")
    assert share_of_gpus(1, 2, []) == {}


def test_gpus_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"--processes=3 does not divide the GPUs of this machine \(0, 1\): give"):
        share_of_gpus(0, 3, ["0", "1"])


def write_program(path, script):
    """A stand-in for a program of this name."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def machine_with_gpus(tmp_path, monkeypatch):
    """A PATH whose nvidia-smi lists four GPUs, as the real one does."""
    write_program(tmp_path / "nvidia-smi", "printf '0\\n1\\n2\\n3\\n'")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in ("CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_gpus_are_those_listed_or_all_of_the_machine(machine_with_gpus):
    assert visible_gpus(os.environ) == ["0", "1", "2", "3"]
    assert visible_gpus({**os.environ, "CUDA_VISIBLE_DEVICES": "2,3"}) == ["2", "3"]
    assert visible_gpus({**os.environ, "CUDA_VISIBLE_DEVICES": ""}) == []
    assert visible_gpus({**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}) == []
    assert visible_gpus({**os.environ, "CUDA_VISIBLE_DEVICES": "1,-1,2"}) == ["1"]
    assert visible_gpus({**os.environ, "JAX_PLATFORMS": "cpu"}) == []
    assert visible_gpus({"PATH": "/nowhere"}) == []


def test_a_driver_that_does_not_answer_has_no_gpus(machine_with_gpus, tmp_path):
    write_program(tmp_path / "nvidia-smi", "echo 'NVIDIA-SMI has failed'; exit 9")
    assert visible_gpus(os.environ) == []


def test_a_cell_finds_its_own_gpus_in_its_environment(machine_with_gpus, tmp_path):
    """The process is a stand-in that writes down what it sees."""
    seen = tmp_path / "seen"
    write_program(tmp_path / "python", f'echo "$CUDA_VISIBLE_DEVICES" >> {seen}')
    machine_with_gpus.setattr("sys.executable", str(tmp_path / "python"))
    launcher = LocalProcesses(2)
    for worker in (0, 1):
        handle = launcher.start(tmp_path, worker)
        while handle.poll() is None:
            time.sleep(0.01)
    assert seen.read_text().split() == ["0,1", "2,3"]


def test_the_devices_counted_are_those_of_one_cell(machine_with_gpus, tmp_path):
    """The process is a stand-in that counts the GPUs it sees, as JAX would."""
    write_program(tmp_path / "python", 'echo "$CUDA_VISIBLE_DEVICES" | tr , "\\n" | wc -l')
    machine_with_gpus.setattr("sys.executable", str(tmp_path / "python"))
    assert [LocalProcesses(workers).count_devices() for workers in (1, 2)] == [4, 2]


def test_a_jax_that_does_not_start_is_one_line(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "abacus")
    with pytest.raises(ValueError, match=r"JAX does not start on this machine: .*abacus") as refused:
        LocalProcesses(1).count_devices()
    assert "\n" not in str(refused.value)


@pytest.fixture
def cell(tmp_path, monkeypatch):
    """A cell's work directory, and an environment in which a process has one device and finds the package."""
    for name, value in ONE_DEVICE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])))
    text = write_text(tmp_path / "text")
    fields = {"data.source": f"text:{text}", "data.cache_dir": str(tmp_path / "cache")}
    ledger = Ledger(tmp_path / "sweep", cells_of([{}], fields=fields))
    ledger.open(add_cells=False)
    return ledger.workdir_of(ledger.cells[0].name)


def end(handle):
    codes = []
    wait_until(lambda: codes.append(handle.poll()) or codes[-1] is not None)
    return codes[-1]


@pytest.fixture
def submitit(tmp_path):
    """A launcher whose jobs are processes of this machine."""
    pytest.importorskip("submitit")
    return Submitit("local", tmp_path / "jobs", {"timeout_min": DEADLINE // 60})


def test_submitit_runs_a_cell(cell, submitit):
    assert end(submitit.start(cell, 0)) == 0
    assert json.loads((cell / "summary.json").read_text())["steps"] == 8
    assert [line["step"] for line in lines(cell) if "train/loss" in line] == list(range(1, 9))
    assert any((cell.parent.parent / "compiled").iterdir())


def test_a_job_that_raises_is_a_failure_and_one_that_is_lost_was_killed(cell, submitit):
    (cell / "cell.json").write_text("{}")
    raised = submitit.start(cell, 0)
    lost = submitit._executor.submit(os._exit, 0)
    lost._results_timeout_s = 0
    assert (end(raised), end(launchers._JobHandle(lost, cell))) == (1, -9)


def test_parameters_that_submitit_does_not_know_are_one_line(tmp_path):
    pytest.importorskip("submitit")
    with pytest.raises(ValueError, match=r"--slurm: .*partitoin.*: see submitit's AutoExecutor"):
        Submitit("local", tmp_path, {"slurm_partitoin": "gpu"})


def test_a_machine_without_slurm_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r'--slurm: Could not detect "srun"'):
        Submitit("slurm", tmp_path, {})


def test_without_submitit_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match=r"--slurm needs submitit: pip install 'moe_jax\[slurm\]'"):
        Submitit("slurm", tmp_path, {})
