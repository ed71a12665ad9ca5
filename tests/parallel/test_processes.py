"""Several processes that train one run: they agree, notice who is lost, resume, and give the results of one process."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from moe_jax.config import MeshConfig
from moe_jax.config.rules import ConfigError, MachineError
from moe_jax.files.lock import locked
from moe_jax.parallel import supervisor
from moe_jax.parallel.batch import Part, part_of
from moe_jax.parallel.launch import launch
from moe_jax.parallel.mesh import make_mesh
from moe_jax.parallel.processes import Cluster, check_alike, join

ROOT = Path(__file__).parents[2]
CONFIG = """
from moe_jax.config import default_config

def get_config():
    config = default_config()
    config.update_from_flattened_dict({fields})
    return config
"""
LOST_SECONDS = 10  # a busy machine is late with its signs of life
STEPS = 200


@pytest.fixture(scope="module")
def config(tiny, tmp_path_factory):
    """The tiny run as a config file: 4 experts over 4 devices."""
    fields = {**tiny, "train.steps": STEPS, "checkpoint.every": 10, "eval.every": 0, "log.every": 2, "mesh.expert": 4}
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(CONFIG.format(fields=fields))
    return path


def script(name, config, workdir, *more):
    return [f"experiments/{name}.py", f"--config={config}", f"--workdir={workdir}", *more]


def environment(devices):
    flags = f"--xla_force_host_platform_device_count={devices}"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


def alone(command, devices=4):
    """One process."""
    run = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment(devices), capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    return run


def together(command, devices=2, processes=2, lost_seconds=60):
    """Started, and not waited for."""
    launcher = ["experiments/launch_local.py", f"--processes={processes}", f"--devices_per_process={devices}", "--"]
    return subprocess.Popen(
        [sys.executable, *launcher, *command, f"--lost_seconds={lost_seconds}"],
        cwd=ROOT, env=environment(1), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def losses(workdir):
    """{step: training loss}."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


def wait_for_step(workdir, step, running):
    until = time.monotonic() + 200
    while time.monotonic() < until and running.poll() is None:
        if (workdir / "metrics.jsonl").exists() and max(losses(workdir), default=0) >= step:
            return
        time.sleep(0.05)
    raise AssertionError(f"step {step} was not reached: {running.communicate()[1][-2000:]}")


def workers(launcher):
    """(process that a signal is meant for, the child that does the work) of each process, in order."""
    table = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True).stdout
    parent_of = {int(pid): int(parent) for pid, parent in (line.split() for line in table.splitlines()[1:])}
    supervisors = sorted(pid for pid, parent in parent_of.items() if parent == launcher.pid)
    child = {parent: pid for pid, parent in parent_of.items() if parent in supervisors}
    return [(pid, child[pid]) for pid in supervisors]


@pytest.fixture(scope="module")
def one_process(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one")
    alone(script("train", config, workdir))
    return workdir


def test_a_lost_process_ends_the_other_and_the_run_resumes(config, one_process, tmp_path):
    """Two processes of two devices; one is killed. What they did in two lives is what one process does, but for the
    order of sums between processes; and one process of four devices reads their checkpoint.
    """
    workdir = tmp_path / "two"
    first = together(script("train", config, workdir), lost_seconds=LOST_SECONDS)
    wait_for_step(workdir, 20, first)
    os.kill(workers(first)[1][1], signal.SIGKILL)
    killed = time.monotonic()
    _, said = first.communicate(timeout=100)
    assert time.monotonic() - killed < LOST_SECONDS + 25  # on a busy machine
    assert first.returncode == 128 + signal.SIGKILL
    last = [line for line in said.splitlines() if line.startswith("[0]")][-1]
    lost = "error: process 1 of this run ended or was lost: the same command goes on from the newest checkpoint"
    assert last == f"[0] {lost}"
    assert "Traceback" not in said and "coordination" not in said

    second = together(script("train", config, workdir))
    _, said = second.communicate(timeout=300)
    assert second.returncode == 0, said
    assert re.search(r"\[0\].* Resumed at step [1-9]\d*0\n", said)
    assert len([line for line in said.splitlines() if line.startswith("[1]")]) == 1, said  # "Process 1 of 2"
    ours, theirs = losses(workdir), losses(one_process)
    assert list(ours) == list(theirs) == list(range(2, STEPS + 1, 2))
    apart = np.abs(np.array(list(ours.values())) / np.array(list(theirs.values())) - 1)
    assert np.all(apart[:20] < 1e-4) and np.all(apart < 5e-2), apart
    alone(script("evaluate", config, workdir))
    read = lambda name: json.loads((workdir / name).read_text())
    assert read("eval.json")["loss"] == pytest.approx(read("summary.json")["eval_loss"], rel=1e-5)


@pytest.mark.slow
def test_what_the_first_is_refused_ends_the_other_too(config, tmp_path):
    """Its directory belongs to another run: both end as bad input, and nobody is said to be lost."""
    with locked(tmp_path / "train.lock", wait=False):
        run, began = together(script("train", config, tmp_path)), time.monotonic()
        _, said = run.communicate(timeout=200)
    assert run.returncode == 2, said
    assert time.monotonic() - began < 45  # and not after `lost_seconds`
    assert re.search(r"\[0\] error: --workdir=.*: another run trains here \(process", said)
    assert re.search(r"\[1\] error: process 0 ended, and said why", said)
    assert "lost" not in said and "Traceback" not in said


@pytest.mark.slow
def test_the_end_of_the_coordinator_is_one_line_too(config, tmp_path):
    running = together(script("train", config, tmp_path / "two", "--config.train.steps=100000"))
    wait_for_step(tmp_path / "two", 20, running)
    os.kill(workers(running)[0][1], signal.SIGKILL)
    _, said = running.communicate(timeout=100)
    last = said.splitlines()[-1]
    assert last.startswith("[1] error: process 0") and last.endswith("goes on from the newest checkpoint")
    assert "Traceback" not in said and "Terminating process" not in said


@pytest.mark.slow
def test_who_has_left_in_order_is_not_taken_for_lost(tmp_path):
    """Process 0 writes for longer than the others wait for it."""
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import time\nimport jax\nfrom moe_jax import cli\nfrom moe_jax.parallel import processes\n\n"
        "processes.LEAVE_SECONDS = 1\ncli.define_process_flags()\n\n\ndef main():\n"
        "    if jax.process_index() == 0:\n        time.sleep(6)\n        print('written')\n\n\ncli.main(main)\n"
    )
    out, said = (running := together([str(slow)])).communicate(timeout=100)
    assert running.returncode == 0 and "[0] written" in out, said
    assert "lost" not in said, said


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_a_signal_to_one_stops_both_at_the_same_step(config, tmp_path, which):
    workdir = tmp_path / "two"
    running = together(script("train", config, workdir, "--config.train.steps=100000"))
    wait_for_step(workdir, 20, running)
    os.kill(workers(running)[which][0], signal.SIGTERM)
    _, said = running.communicate(timeout=100)
    assert running.returncode == 128 + signal.SIGTERM, said
    for number in (0, 1):
        assert f"[{number}] W" in said and said.count("Stopped by signal 15; the same command continues") == 2
    newest = max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal())
    assert newest >= max(losses(workdir))


@pytest.mark.slow
def test_processes_along_tensor_feed_the_same_rows(config, one_process, tmp_path):
    """The devices of a process are neighbours along the last axis; here that axis is as long as both together."""
    mesh = ["--config.mesh.expert=1", "--config.mesh.tensor=2", "--config.mesh.data=1"]
    running = together(script("train", config, tmp_path / "two", *mesh), devices=1)
    _, said = running.communicate(timeout=300)
    assert running.returncode == 0, said
    ours, theirs = losses(tmp_path / "two"), losses(one_process)
    assert list(ours) == list(theirs)
    np.testing.assert_allclose(list(ours.values())[:20], list(theirs.values())[:20], rtol=1e-4)


@pytest.mark.slow
def test_processes_that_do_not_match_are_named(config, tmp_path):
    """One of them has another learning rate, by a config that looks at its number."""
    text = config.read_text().replace(
        "    return config", "    import os\n    if os.environ['MOE_JAX_PROCESS_ID'] == '1':\n"
        "        config.train.learning_rate = 0.5\n    return config"
    )  # fmt: skip
    other = tmp_path / "other.py"
    other.write_text(text)
    _, said = (running := together(script("train", other, tmp_path / "two"))).communicate(timeout=200)
    assert running.returncode == 2, said
    wanted = "error: process 1 has train.learning_rate=0.5 and process 0 has 0.003: start all processes with the same"
    assert f"[0] {wanted}" in said and f"[1] {wanted}" in said


@pytest.mark.slow
def test_nobody_comes_or_nobody_is_there(config, tmp_path):
    command = script("train", config, tmp_path / "two", "--num_processes=2", "--start_seconds=3")
    for number, coordinator in ((0, "localhost:45671"), (1, "localhost:45672")):
        run = subprocess.run(
            [sys.executable, *command, f"--coordinator={coordinator}", f"--process_id={number}"],
            cwd=ROOT, env=environment(2), capture_output=True, text=True, timeout=100,
        )  # fmt: skip
        assert run.returncode == 3, run.stderr
        assert run.stderr.splitlines()[-1].startswith(
            f"error: not all of --num_processes=2 have come to --coordinator={c}" if (c := coordinator) else ""
        )
        assert not (tmp_path / "two").exists()


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        (Cluster("a:1", 0, 0), "--coordinator=a:1 with --num_processes=0: give both"),
        (Cluster("a:1", 2, 2), "--process_id=2 is none of --num_processes=2: count from 0 to 1"),
        (Cluster("a:1", 2, -1), "--process_id=-1 is none of"),
        (Cluster("a", 2, 0), "--coordinator=a is no host:port"),
        (Cluster("a:99999", 2, 0), "--coordinator=a:99999 is no host:port"),
        (Cluster("a:0", 2, 0), "--coordinator=a:0 is no host:port"),
    ],
)
def test_numbers_that_do_not_fit(cluster, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        join(cluster)


def test_one_process_is_alike():
    check_alike({"a": 1})


@pytest.mark.parametrize("mesh", [{"data": 2, "expert": 4}, {"fsdp": 2, "expert": 2, "tensor": 2}])
def test_a_process_with_all_devices_has_the_whole_batch_and_places_it(mesh):
    on = make_mesh(MeshConfig(**mesh))
    part = part_of(on, 16)
    assert part == Part(0, 16, 16) and part.number == (0, 1)
    rows = np.arange(16 * 3).reshape(16, 3)
    placed = part.place(rows, on)
    np.testing.assert_array_equal(placed, rows)
    assert {shard.data.shape[0] for shard in placed.addressable_shards} == {16 // (on.size // mesh.get("tensor", 1))}


@pytest.mark.parametrize(
    ("held", "part"),
    [
        ([slice(4, 6), slice(6, 8)], Part(4, 8, 16)),  # the second of four
        ([slice(None)], Part(0, 16, 16)),  # tensor alone: everybody has everything
        ([slice(0, 2), slice(8, 10)], Part(0, 16, 16)),  # rows that are not neighbours: it reads them all
        ([slice(2, 4), slice(4, 6)], Part(0, 16, 16)),  # and those that are no part of equal ones
    ],
)
def test_parts_of_a_batch(monkeypatch, held, part):
    by_device = {number: (one,) for number, one in enumerate(held)}
    monkeypatch.setattr(jax.sharding.NamedSharding, "addressable_devices_indices_map", lambda self, shape: by_device)
    assert part_of(make_mesh(MeshConfig(expert=8)), 16) == part


def test_what_xla_says_of_others_is_left_out(capfd):
    reads, writes = os.pipe()
    lines = [
        b"step 3: held-out loss 1.0", b"E1126 21:40:28.311 18758 coordination_service_agent.cc:288] Polled an error",
        b"Additional GRPC error information", b"{...}", b"error: a line of ours", b"[Gloo] Rank 0 is connected",
        b"W1126 21:40:29.1 1 loop.py:3] runs/distributed is resumed",
        b"E1126 21:40:28.311 18758 coordination_service_agent.cc:288] Polled an error",
        b"Traceback (most recent call last):",
    ]  # fmt: skip
    os.write(writes, b"\n".join(lines) + b"\nno end")
    os.close(writes)
    supervisor._without_noise(reads)
    expected = [lines[0], lines[4], lines[6], lines[8], b"no end"]
    assert capfd.readouterr().err.encode().splitlines() == expected


@pytest.mark.parametrize(
    ("command", "processes", "message"),
    [
        ([], 2, "no script: write it behind --"),
        (["train.py"], 0, "--processes=0: give how many are to run"),
        (["train.py"], 10**6, "--processes=1000000 take 256 MB each at least, and this machine has memory for"),
    ],
)
def test_a_launcher_says_what_is_missing(command, processes, message):
    with pytest.raises(ConfigError, match=message):
        launch(command, processes)


def test_a_port_that_is_taken_is_said_before_anything_starts():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(MachineError, match=f"port {port} cannot be had .*: give a free one"):
            join(Cluster(f"localhost:{port}", 2, 0))


@pytest.mark.parametrize(
    ("ended_by", "joined", "code", "line"),
    [
        (signal.SIGABRT, True, 3, "error: process 0, which coordinates the others, ended or was lost"),
        (signal.SIGABRT, False, 3, "error: nobody came"),
        (signal.SIGSEGV, False, 3, "error: nobody came"),
        (signal.SIGSEGV, True, 139, "error: this process was ended by signal 11 (Segmentation fault)"),
    ],
)
def test_the_last_word_on_a_process_that_a_signal_ended(capfd, ended_by, joined, code, line):
    assert supervisor._exit_code(ended_by, joined, "nobody came") == code
    assert capfd.readouterr().err.startswith(line)
