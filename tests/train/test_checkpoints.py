import errno
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from moe_jax import cli
from moe_jax.config.rules import MachineError
from moe_jax.config.schema import CheckpointConfig, MeshConfig
from moe_jax.parallel.mesh import make_mesh
from moe_jax.train import checkpoints as checkpoints_module
from moe_jax.train.checkpoints import Checkpoints, HostState, system_failure
from moe_jax.train.state import TrainState

# Orbax closes its event loop while reads that failed are still being reported to it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

SAVED = (2, 4, 6)


def make_state(step, sharding=None):
    """Every array tells the step."""
    weights = step + np.arange(16 * 3, dtype=np.float32).reshape(16, 3) / 7
    place = lambda x: jax.device_put(x, sharding) if sharding else jnp.asarray(x)
    moments = {"mu": place(weights / 3), "count": jnp.asarray(step, jnp.int32)}
    return TrainState(
        jnp.asarray(step, jnp.int32),
        jnp.uint32(0),
        {"layer": {"w": place(weights)}, "b": jnp.zeros(2)},
        {"bias": place(weights / 5)},
        moments,
        (place(weights * 2),),
    )


def abstract_of(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


ABSTRACT = abstract_of(make_state(0))


def assert_equal(state, other):
    assert jax.tree.structure(state) == jax.tree.structure(other)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), state, other)


def save(workdir, steps, keep=3):
    """Saves after each of `steps`, at ten times that position in the data."""
    with Checkpoints(workdir, CheckpointConfig(keep=keep)) as checkpoints:
        for step in steps:
            checkpoints.save(make_state(step), HostState(10 * step, skipped=step, in_a_row=1))


def restore(workdir):
    """As a run that goes on."""
    with Checkpoints(workdir, CheckpointConfig(keep=3)) as checkpoints:
        return checkpoints.restore(ABSTRACT)


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(workdir):
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints of steps 2, 4 and 6; not to be written to."""
    workdir = tmp_path_factory.mktemp("saved")
    save(workdir, SAVED)
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    """A copy of them."""
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


def test_round_trip_is_exact(saved):
    state, host, _ = restore(saved)
    assert_equal(state, make_state(6))
    assert host == HostState(60, 6, 1)


def test_a_checkpoint_from_before_digests_is_at_the_position_of_its_step(workdir):
    """Grain kept it then, in files of its own form for each process; each step had taken one batch."""
    (workdir / "checkpoints/6/digests.json").unlink()
    shutil.rmtree(workdir / "checkpoints/6/data")
    (workdir / "checkpoints/6/data").mkdir()
    (workdir / "checkpoints/6/data/process_0-of-1.json").write_text('{"next_index": 6}')
    state, host, _ = restore(workdir)
    assert_equal(state, make_state(6))
    assert host == HostState(6, 0, 0)


def test_a_checkpoint_of_another_format_is_not_read(workdir, caplog, monkeypatch):
    monkeypatch.setattr(checkpoints_module, "FORMAT", 9)
    with pytest.raises(ValueError, match="none of the checkpoints"):
        restore(workdir)
    assert "it has format 2, this release reads 9" in caplog.text


def test_no_checkpoint_is_none(tmp_path):
    assert restore(tmp_path) is None
    with Checkpoints(tmp_path / "nowhere") as checkpoints:
        assert checkpoints.latest_step() is None
        assert checkpoints.restore(ABSTRACT) is None
    assert not (tmp_path / "nowhere").exists()


def test_only_the_newest_are_kept(tmp_path):
    save(tmp_path, [1, 2, 3, 4, 5], keep=2)
    assert names(tmp_path) == ["4", "5"]


def test_a_step_is_saved_once(workdir):
    before = content(workdir)
    with Checkpoints(workdir, CheckpointConfig(keep=3)) as checkpoints:
        checkpoints.save(make_state(6), HostState(60))
    assert content(workdir) == before


def test_a_state_that_is_donated_while_it_is_written(tmp_path):
    bump = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state = bump(TrainState(jnp.int32(2), jnp.uint32(0), {"w": jnp.zeros(1 << 20)}, {}, {}, ()))
    abstract = abstract_of(state)
    with Checkpoints(tmp_path, CheckpointConfig(keep=3)) as checkpoints:
        checkpoints.save(state, HostState(0))
        for _ in range(5):
            state = bump(state)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(abstract).state
    assert int(restored.step) == 3
    np.testing.assert_array_equal(restored.params["w"], np.ones(1 << 20))


def truncate_arrays(checkpoint):
    for path in (checkpoint / "state").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:10])


def flip_a_byte(checkpoint):
    path = max((checkpoint / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    flipped = bytearray(path.read_bytes())
    flipped[len(flipped) // 2] ^= 0xFF
    path.write_bytes(flipped)


def empty_all_files(checkpoint):
    for path in filter(lambda path: path.is_file(), checkpoint.rglob("*")):
        path.write_bytes(b"")


DAMAGES = {
    "truncated arrays": truncate_arrays,
    "a flipped byte": flip_a_byte,
    "no state": lambda checkpoint: shutil.rmtree(checkpoint / "state"),
    "no data position": lambda checkpoint: shutil.rmtree(checkpoint / "data"),
    "no data file": lambda checkpoint: (checkpoint / "data/metadata").unlink(),
    "a torn data file": lambda checkpoint: (checkpoint / "data/metadata").write_text('{"posi'),
    "another position": lambda checkpoint: (checkpoint / "data/metadata").write_text('{"format":2,"position":7}'),
    "torn digests": lambda checkpoint: (checkpoint / "digests.json").write_text('{"state/'),
    "garbage as metadata": lambda checkpoint: (checkpoint / "state/_METADATA").write_text("garbage"),
    "empty files": empty_all_files,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_taken(workdir, damage, caplog):
    damage(workdir / "checkpoints/6")
    damaged = content(workdir / "checkpoints/6")
    state, host, _ = restore(workdir)
    assert_equal(state, make_state(4))
    assert host.position == 40
    (warning,) = [message for message in caplog.messages if "cannot be read" in message]
    assert warning.startswith(f"Checkpoint 6 in {workdir}/checkpoints cannot be read (")
    assert "\n" not in warning
    assert names(workdir) == ["2", "4", "6.damaged"]
    assert content(workdir / "checkpoints/6.damaged") == damaged

    save(workdir, [6])
    assert_equal(restore(workdir)[0], make_state(6))
    assert names(workdir) == ["2", "4", "6", "6.damaged"]


def test_the_same_step_damaged_again(workdir):
    for aside in (["6.damaged"], ["6.damaged", "6.damaged.2"]):
        DAMAGES["no state"](workdir / "checkpoints/6")
        assert int(restore(workdir)[0].step) == 4
        assert names(workdir) == ["2", "4", *aside]
        save(workdir, [6])


def test_two_damaged_ones(workdir, caplog):
    for step in (4, 6):
        truncate_arrays(workdir / f"checkpoints/{step}")
    assert_equal(restore(workdir)[0], make_state(2))
    assert [message[:12] for message in caplog.messages if "cannot be read" in message] == [
        "Checkpoint 6",
        "Checkpoint 4",
    ]
    assert names(workdir) == ["2", "4.damaged", "6.damaged"]


def test_all_damaged_is_an_error_and_changes_nothing(workdir):
    for step in SAVED:
        truncate_arrays(workdir / f"checkpoints/{step}")
    before = content(workdir)
    for _ in range(2):  # a second start must not take the directory for an empty one
        with pytest.raises(ValueError, match=r"none of the checkpoints \[6, 4, 2\] in .* choose another") as error:
            restore(workdir)
        assert "\n" not in str(error.value)
    assert content(workdir) == before


def test_reading_changes_nothing(workdir, caplog):
    truncate_arrays(workdir / "checkpoints/6")
    before = content(workdir)
    with Checkpoints(workdir) as checkpoints:
        assert_equal(checkpoints.restore(ABSTRACT).state, make_state(4))
    assert any("cannot be read" in message for message in caplog.messages)
    assert content(workdir) == before


def test_an_interrupted_save_is_ignored(workdir):
    shutil.copytree(workdir / "checkpoints/6", workdir / "checkpoints/8.orbax-checkpoint-tmp")
    (workdir / "checkpoints/8.orbax-checkpoint-tmp/commit_success.txt").unlink()
    assert_equal(restore(workdir)[0], make_state(6))
    save(workdir, [8])
    assert_equal(restore(workdir)[0], make_state(8))


@pytest.mark.parametrize("before, after", [((2, 2, 2), (1, 1, 1)), ((1, 1, 1), (1, 2, 4))])
def test_restores_onto_another_mesh(tmp_path, before, after):
    def sharding(sizes):
        mesh = make_mesh(MeshConfig(*sizes))
        return NamedSharding(mesh, PartitionSpec(("data", "fsdp", "expert")))

    state = make_state(5, sharding(before))
    with Checkpoints(tmp_path, CheckpointConfig(keep=3)) as checkpoints:
        checkpoints.save(state, HostState(0))
    target = abstract_of(make_state(0, sharding(after)))
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(target).state
    assert_equal(restored, state)
    assert restored.params["layer"]["w"].sharding == target.params["layer"]["w"].sharding


def test_every_flipped_byte_is_found(saved, tmp_path):
    """Of every file that holds anything of the state or the position, at its beginning, middle and end."""
    files = [path for path in (saved / "checkpoints/6").rglob("*") if path.is_file() and len(path.parts) > 1]
    checked = [path for path in files if {"state", "data"} & set(path.relative_to(saved).parts)]
    assert len(checked) > 5
    for path in checked:
        content = path.read_bytes()
        for place in {0, len(content) // 2, len(content) - 1} if content else set():
            copy = tmp_path / "copy"
            shutil.copytree(saved / "checkpoints/6", copy / "checkpoints/6")
            flipped = bytearray(content)
            flipped[place] ^= 1
            (copy / path.relative_to(saved)).write_bytes(flipped)
            with Checkpoints(copy) as checkpoints, pytest.raises(ValueError, match="none of the checkpoints"):
                checkpoints.restore(ABSTRACT)
            shutil.rmtree(copy)


def test_a_reader_beside_a_run_that_removes_what_it_reads(workdir, monkeypatch):
    """The newest checkpoint vanishes while it is read, and a newer one has come."""
    with Checkpoints(workdir) as checkpoints:
        read = checkpoints._read

        def rotate_then_read(step, shapes):
            if step == 6:
                save(workdir, [8], keep=1)
            return read(step, shapes)

        monkeypatch.setattr(checkpoints, "_read", rotate_then_read)
        assert int(checkpoints.restore(ABSTRACT).state.step) == 8


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_one_line_and_the_next_checkpoint_that_fits_is_written(tmp_path, monkeypatch, caplog):
    """The digests are written last, behind all that Orbax writes: where they fail, all of it does."""
    with Checkpoints(tmp_path, CheckpointConfig(keep=3)) as checkpoints:
        checkpoints.save(make_state(2), HostState(2))
        checkpoints.wait()
        with monkeypatch.context() as full:
            full.setattr(checkpoints_module, "write_digests", no_space)
            checkpoints.save(make_state(4), HostState(4))
            with pytest.raises(
                MachineError, match=r"^checkpoint 4 could not be written to .* \(No space left on device\)$"
            ):
                checkpoints.wait()
            checkpoints.save(make_state(6), HostState(6))
            while checkpoints._manager.is_saving_in_progress():
                pass
        checkpoints.poll()
        assert "checkpoint 6 could not be written" in caplog.text
        checkpoints.save(make_state(8), HostState(8))
    assert names(tmp_path) == ["2", "8"]
    assert_equal(restore(tmp_path).state, make_state(8))
    shown = [record.getMessage() for record in caplog.records if cli.is_worth_showing(record)]
    assert len(shown) == 1 and shown[0].startswith("checkpoint 6 could not be written")


def test_what_the_system_refused_is_told_from_faults_of_the_code():
    for words in ("[OS error 28: ENOSPC No space left on device]", "[os_error_code='28']"):  # of TensorStore's releases
        assert system_failure(ValueError(f"UNKNOWN: Error writing /x/d/0 {words}")) == "No space left on device"
    wrapped = RuntimeError("save failed")
    wrapped.__cause__ = PermissionError(errno.EACCES, "Permission denied")
    assert system_failure(wrapped) == "Permission denied"
    assert system_failure(ValueError("unknown leaf")) is None
