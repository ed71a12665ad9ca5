import pytest

from moe_jax.config.schema import DataConfig


@pytest.fixture
def write(tmp_path):
    """write({"a/b.txt": "text"}) makes files below a fresh directory and returns the directory."""

    def write_files(files, directory="text"):
        for name, content in files.items():
            path = tmp_path / directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path / directory

    return write_files


@pytest.fixture
def make_config(tmp_path):
    def make(source, **fields):
        defaults = {"cache_dir": str(tmp_path / "cache"), "sequence_length": 8, "batch_size": 4}
        return DataConfig(source=source, **{**defaults, **fields})

    return make


@pytest.fixture
def letters(write):
    """Forty documents of two domains, each with its own letters, of 3 to 22 characters."""
    files = {f"low/{i:02}.txt": f"{i:02}" + "abcdefghij"[i % 10] * (i + 1) for i in range(20)}
    files |= {f"high/{i:02}.txt": f"{i:02}" + "ABCDEFGHIJ"[i % 10] * (i + 1) for i in range(20)}
    return write(files)
