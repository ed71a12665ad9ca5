import itertools
import shutil

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from moe_jax.config.schema import CheckpointConfig, MeshConfig
from moe_jax.parallel.mesh import make_mesh
from moe_jax.train.checkpoints import Checkpoints
from moe_jax.train.state import TrainState

# Orbax closes its event loop while reads that failed are still being reported to it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

SAVED = (2, 4, 6)


def numbers():
    """A data iterator that counts in a shuffled order."""
    return iter(grain.MapDataset.range(50).seed(0).shuffle().repeat().to_iter_dataset())


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
    """Saves after each of `steps`; the data iterator moves by one a step."""
    data, position = numbers(), 0
    with Checkpoints(workdir, CheckpointConfig(keep=keep)) as checkpoints:
        for step in steps:
            for _ in range(step - position):
                next(data)
            checkpoints.save(make_state(step), data)
            position = step


def restore(workdir):
    """As a run that goes on: (state, the next datum)."""
    data = numbers()
    with Checkpoints(workdir, CheckpointConfig(keep=3)) as checkpoints:
        return checkpoints.restore(ABSTRACT, data), next(data)


def datum(position):
    return next(itertools.islice(numbers(), position, None))


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
    state, next_datum = restore(saved)
    assert_equal(state, make_state(6))
    assert next_datum == datum(6)


def test_no_checkpoint_is_none(tmp_path):
    assert restore(tmp_path)[0] is None
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
        checkpoints.save(make_state(6), numbers())
    assert content(workdir) == before


def test_a_state_that_is_donated_while_it_is_written(tmp_path):
    bump = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    state = bump(TrainState(jnp.int32(2), jnp.uint32(0), {"w": jnp.zeros(1 << 20)}, {}, {}, ()))
    abstract = abstract_of(state)
    with Checkpoints(tmp_path, CheckpointConfig(keep=3)) as checkpoints:
        checkpoints.save(state, numbers())
        for _ in range(5):
            state = bump(state)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(abstract)
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
    "no data file": lambda checkpoint: (checkpoint / "data/process_0-of-1.json").unlink(),
    "a torn data file": lambda checkpoint: (checkpoint / "data/process_0-of-1.json").write_text('{"next_'),
    "garbage as metadata": lambda checkpoint: (checkpoint / "state/_METADATA").write_text("garbage"),
    "empty files": empty_all_files,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_taken(workdir, damage, caplog):
    damage(workdir / "checkpoints/6")
    damaged = content(workdir / "checkpoints/6")
    state, next_datum = restore(workdir)
    assert_equal(state, make_state(4))
    assert next_datum == datum(4)
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
        assert_equal(checkpoints.restore(ABSTRACT), make_state(4))
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
        checkpoints.save(state, numbers())
    target = abstract_of(make_state(0, sharding(after)))
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(target)
    assert_equal(restored, state)
    assert restored.params["layer"]["w"].sharding == target.params["layer"]["w"].sharding
