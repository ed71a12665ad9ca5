"""Digests find every change of what was there."""

import pytest

from moe_jax.files.digests import DIGESTS, damage, has_digests, write_digests


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "state" / "d").mkdir(parents=True)
    (tmp_path / "state" / "d" / "weights").write_bytes(bytes(range(256)))
    (tmp_path / "empty").touch()
    write_digests(tmp_path)
    return tmp_path


def test_what_is_as_it_was_has_no_damage(directory):
    (directory / "later").write_text("not counted")
    assert has_digests(directory)
    assert damage(directory) is None


def test_one_bit_is_found(directory):
    data = bytearray(range(256))
    data[77] ^= 1
    (directory / "state" / "d" / "weights").write_bytes(data)
    assert damage(directory) == "state/d/weights has changed since it was written"


def test_a_missing_file_is_found(directory):
    (directory / "empty").unlink()
    assert damage(directory) == "empty is missing"


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"3", b"null"])
def test_damaged_digests_are_found(directory, content):
    (directory / DIGESTS).write_bytes(content)
    assert damage(directory) is not None


def test_no_digests(tmp_path):
    assert not has_digests(tmp_path)
    with pytest.raises(FileNotFoundError):
        damage(tmp_path)
