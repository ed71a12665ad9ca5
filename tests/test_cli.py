"""Scripts as a user meets them: one line and an exit code for whatever goes wrong."""

import errno
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from bad_input import ends
from configurations import ROOT

from moe_jax import cli
from moe_jax.config.rules import ConfigError, DivergedError, MachineError, directory
from moe_jax.files import limits, terminal

CONFIG = "--config=configs/quickstart.py"
BAD = {  # arguments of experiments/train.py, and what the one line says
    "unknown field": (
        [CONFIG, "--config.moe.experts=4"],
        "moe.experts is not a field of a run: did you mean moe.num_experts?",
    ),
    "section": ([CONFIG, "--config.train=5"], "train is a section, not a field: set one of its fields, as train.steps"),
    "no integer": ([CONFIG, "--config.moe.num_experts=many"], "--config.moe.num_experts=many is no whole number: give"),
    "no boolean": (
        [CONFIG, "--config.model.tie_embeddings=3"],
        "--config.model.tie_embeddings=3 is no truth value: ",
    ),
    "impossible value": ([CONFIG, "--config.moe.capacity_factor=nan"], "moe.capacity_factor=nan is not finite: give"),
    "too many steps": ([CONFIG, "--config.train.steps=99999999999"], "train.steps=99999999999 does not fit into 32 bi"),
    "missing file": (["--config=configs/missing.py"], "configs/missing.py cannot be read (No such file or directory)"),
    "processes without a coordinator": (
        [CONFIG, "--num_processes=2", "--process_id=1"],
        "--num_processes=2 and --process_id=1 without --coordinator: give host:port of process 0 too",
    ),
    "no field of text": ([CONFIG, "--config.data.text_field="], "data.text_field='' names no field: give the one"),
    "more layers than a list holds": (
        [CONFIG, f"--config.model.num_layers={10**9}"],
        "model.num_layers=1000000000 is more than 10000: lower it",
    ),
    "more weights than memory": (
        [CONFIG, "--config.model.d_model=1000000", "--config.mesh.data=-1", "--config.train.accumulate=1"],
        "GB: lower model.d_model, model.vocab_size or moe.num_experts, or take more devices",
    ),
    "a batch larger than memory": (
        [CONFIG, f"--config.data.batch_size={2**30}", "--config.mesh.data=-1", "--config.train.accumulate=1"],
        "GB: lower data.batch_size or data.sequence_length, or raise train.accumulate, or take more devices",
    ),
    "a number of many bits": (
        [CONFIG, f"--config.attention.window={10**400}"],
        "attention.window, of 1329 bits, does not fit into 32 bits: give less than 2147483648",
    ),
    "folder as file": (["--config=configs", "--config.seed=1"], "--config=configs cannot be read"),
    "missing flag": ([], "--config is missing: give it (Config file, for instance configs/quickstart.py.)"),
    "unknown flag": ([CONFIG, "--seed=1"], "--seed is no flag of this script: leave it out"),
    "a flag's value": ([CONFIG, "--lost_seconds=x"], "--lost_seconds=x: give a positive integer (Without a sign"),
    "no truth value": ([CONFIG, "--distributed=maybe"], "--distributed=maybe: give true or false (One of several"),
    "stray argument": ([CONFIG, "train.steps=5"], "'train.steps=5' is not a flag: write --flag=value"),
}
WORKDIRS = {
    "": "--workdir='' names no directory: give a path",
    "s3://bucket/run": "--workdir='s3://bucket/run' is no path of this machine: mount s3 and give its path here",
    "gs://bucket/run": "mount gs and give",
    "~nosuchuser/run": "begins at a home directory that is not known here: write the path out, or set HOME",
    "a\0b": "has a NUL character",
    "--config.seed=1": "is a flag: give --workdir a path of its own",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Each bad command line with its work directory and how it ended."""
    workdirs = {name: tmp_path_factory.mktemp("runs") / "run" for name in BAD}
    lines = {name: [f"--workdir={workdirs[name]}", *arguments] for name, (arguments, _) in BAD.items()}
    ended = ends("train.py", lines, tmp_path_factory.mktemp("said"), {"JAX_LOG_COMPILES": "1"})
    return {name: (workdirs[name], (stdout, stderr), code) for name, (code, stdout, stderr) in ended.items()}


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


@pytest.mark.parametrize("path", WORKDIRS)
def test_what_is_no_directory_of_this_machine(path):
    with pytest.raises(ConfigError) as error:
        directory("--workdir", path)
    assert WORKDIRS[path] in str(error.value)


def test_without_a_home(monkeypatch):
    """A container's random user has neither HOME nor an entry in the list of users."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    assert directory("--workdir", "/tmp/run").as_posix() == "/tmp/run"
    with pytest.raises(ConfigError, match=r"^data.cache_dir='~/.cache/moe_jax' begins at a home .* or set HOME$"):
        directory("data.cache_dir", "~/.cache/moe_jax")


def raised_in_a_library():
    return int("no number")


ENDS = {  # what a script raises: (exit code, what the line says); no code: it goes through as it is
    "bad input": (lambda: directory("--workdir", ""), 2, "error: --workdir='' names no directory"),
    "a library's ValueError": (raised_in_a_library, None, ValueError),
    "a fault of the code": (lambda: {}["key"], None, KeyError),
    "no space": (
        lambda: Path("/proc/self/nothing").read_text(),
        3,
        "error: the system refuses: No such file or directory (/pr",
    ),
    "full disk": (
        lambda: throw(OSError(errno.ENOSPC, "No space left on device", "runs/eval.json")),
        3,
        "error: no room is left for runs/eval.json (No space left on device): make room",
    ),
    "a machine's failure": (lambda: throw(MachineError("disk full")), 3, "error: disk full"),
    "no memory": (lambda: throw(MemoryError()), 3, "error: this machine is out of memory"),
    "no device memory": (
        lambda: throw(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore")),
        3,
        "error: a device is out of memory (RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.): lower data.batch",
    ),
    "another process's end, of one alone": (
        lambda: throw(jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed")),
        None,
        jax.errors.JaxRuntimeError,
    ),
    "XLA's fault": (lambda: throw(jax.errors.JaxRuntimeError("INTERNAL: x")), None, jax.errors.JaxRuntimeError),
    "diverged": (lambda: throw(DivergedError("no\nmore")), 4, "error: no more"),
    "Ctrl-C": (lambda: throw(KeyboardInterrupt()), 130, "interrupted: the same command goes on"),
    "no reader": (lambda: throw(BrokenPipeError()), 141, ""),
}


def throw(error):
    raise error


@pytest.mark.parametrize("name", ENDS)
def test_the_exit_code_says_whose_fault_it_is(name, capsys):
    script, code, said = ENDS[name]
    with pytest.raises(SystemExit if code else said) as end:
        cli._guarded(script)
    if code:
        assert end.value.code == code
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == bool(said)
        assert lines == [] or lines[0].startswith(said)


def test_the_way_to_other_processes_is_lost(monkeypatch, capsys):
    monkeypatch.setattr(cli, "is_one_of_several", lambda: True)
    with pytest.raises(SystemExit) as end:
        cli._guarded(lambda: throw(jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: Gloo ReduceScatter timed out\nmore")))
    assert end.value.code == 3
    assert re.match(r"error: the other processes of this run cannot be reached \(DEAD.*out\)", capsys.readouterr().err)
    with pytest.raises(jax.errors.JaxRuntimeError):
        cli._guarded(lambda: throw(jax.errors.JaxRuntimeError("INTERNAL: x")))


def test_whole_numbers_of_a_flag():
    assert cli.integers("--seeds", ["0", "7"]) == (0, 7)
    for values, said in (
        (["x"], "--seeds=x: give whole"),
        ([], "--seeds= is empty: give whole numbers, as in --seeds=0,1"),
    ):
        with pytest.raises(ValueError, match=said):
            cli.integers("--seeds", values)


def test_nobody_reads_the_line(monkeypatch):
    class Closed:
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Closed())
    with pytest.raises(SystemExit) as end:
        cli._guarded(lambda: directory("--workdir", ""))
    assert end.value.code == 2


def record(path, level=logging.WARNING):
    return logging.LogRecord("absl", level, path, 1, "text", (), None)


def test_a_storage_librarys_own_log_is_not_shown():
    assert cli.is_worth_showing(record(cli.__file__, logging.INFO))
    assert cli.is_worth_showing(record("/site-packages/jax/core.py"))
    assert not cli.is_worth_showing(record("/site-packages/jax/core.py", logging.INFO))
    for library in ("orbax/checkpoint/manager.py", "asyncio/base_events.py"):
        assert not cli.is_worth_showing(record(f"/site-packages/{library}", logging.ERROR))


SAYS = """
import os, sys
from moe_jax.files import terminal
terminal.prepare()
opened = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
print("wiki/en (\\N{GREEK SMALL LETTER ALPHA})")
print("to nobody", file=sys.stderr)
sys.exit(0 if opened > 2 else 9)
"""


@pytest.mark.parametrize("closed", ["", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_and_a_terminal_of_few_letters(tmp_path, closed):
    """A file that is opened later must not take the number of a closed stream: others' output would land in it."""
    script, file = tmp_path / "says.py", tmp_path / "opened"
    script.write_text(SAYS)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    shell = f"{sys.executable} {script} {file} {closed}"
    done = subprocess.run(["sh", "-c", shell], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert file.read_text() == ""
    if ">&-" not in closed.replace("2>&-", ""):
        assert done.stdout == "wiki/en (\\u03b1)\n"


def test_ctrl_c_while_libraries_are_imported():
    program = "from moe_jax import cli; raise KeyboardInterrupt"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGINT
    assert done.stderr == ""
    turned = (
        "import os, signal\nfrom moe_jax import cli\ntry: os.kill(os.getpid(), signal.SIGINT)\n"
        "except BaseException: raise ImportError('x') from None"
    )
    done = subprocess.run([sys.executable, "-c", turned], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "")
    failed = subprocess.run([sys.executable, "-c", "from moe_jax import cli; 1 / 0"], cwd=ROOT, capture_output=True)
    assert failed.returncode == 1 and b"ZeroDivisionError" in failed.stderr


def test_prepared_streams_stay_as_they_are(capsys):
    terminal.prepare()
    print("text")
    assert capsys.readouterr().out == "text\n"


def test_the_limit_of_open_files_is_raised_as_far_as_it_goes(monkeypatch):
    set_to = []
    monkeypatch.setattr(limits.resource, "setrlimit", lambda what, values: set_to.append(values))
    for (soft, hard), allowed in {
        (24, 24): 24,
        (24, 1000): 1000,
        (24, -1): 4096,
        (-1, -1): 4096,
        (9000, 9000): 4096,
    }.items():
        monkeypatch.setattr(limits.resource, "getrlimit", lambda what, limit=(soft, hard): limit)
        assert limits.allow_open_files() == allowed
    assert set_to == [(24, 24), (1000, 1000), (4096, -1)]


def test_too_few_open_files_are_one_line():
    command = f"ulimit -n 24; exec {sys.executable} experiments/train.py {CONFIG} --workdir=/nowhere"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith("error: this process may open 24 files at a time, and needs 256")
