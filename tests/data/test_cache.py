import pytest

from moe_jax.config.rules import MachineError
from moe_jax.data.cache import publish


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_failed_entry_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), publish(tmp_path / "entry") as draft:
        (draft / "half").write_text("x")
        assert not (tmp_path / "entry").exists()
        raise RuntimeError
    assert names(tmp_path) == []


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    entry = tmp_path / "file" / "entry"
    with pytest.raises(MachineError, match=r"data\.cache_dir cannot be written .*: make room"), publish(entry):
        pass
