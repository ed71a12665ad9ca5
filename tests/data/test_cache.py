import pytest

from moe_jax.data.cache import publish


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_failed_entry_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), publish(tmp_path / "entry") as draft:
        (draft / "half").write_text("x")
        assert not (tmp_path / "entry").exists()
        raise RuntimeError
    assert names(tmp_path) == []


def test_of_two_processes_the_first_to_finish_wins(tmp_path):
    with publish(tmp_path / "entry") as slow:
        (slow / "file").write_text("slow")
        with publish(tmp_path / "entry") as fast:
            (fast / "file").write_text("fast")
    assert (tmp_path / "entry" / "file").read_text() == "fast"
    assert names(tmp_path) == ["entry"]


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    entry = tmp_path / "file" / "entry"
    with pytest.raises(ValueError, match=r"data\.cache_dir cannot be written .*: set it to"), publish(entry):
        pass
