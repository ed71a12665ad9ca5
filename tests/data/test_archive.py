import hashlib
import io
import re
import shutil
import subprocess
import tarfile
import zipfile

import pytest

from moe_jax.config.schema import DataConfig
from moe_jax.data.sources import parse_sources, release

FILES = {
    "Tiny-1.0/docs/intro.txt": b"english",
    "Tiny-1.0/docs/conf.py": b"code",
    "Tiny-1.0/tiny/core.py": b"code ",
    "Tiny-1.0/tiny/test/client.py": b"code  ",  # a package called test is not a directory of tests
    "Tiny-1.0/tiny/locale/de.po": b"translations",
    "Tiny-1.0/tiny/locale/de.mo": b"\0",
    "Tiny-1.0/tests/test_core.py": b"tests",
    "Tiny-1.0/README.rst": b"other",
}


def write_tar(directory):
    with tarfile.open(directory / "tiny-1.0.tar.gz", "w:gz") as tar:
        for name, data in FILES.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def write_zip(directory):
    with zipfile.ZipFile(directory / "tiny-1.0.zip", "w") as file:
        file.mkdir("Tiny-1.0")
        for name, data in FILES.items():
            file.writestr(name, data)


@pytest.fixture
def source(tmp_path):
    return parse_sources(DataConfig(source="pypi:Tiny==1.0", cache_dir=str(tmp_path)))[0]


@pytest.mark.parametrize("write_archive", [write_tar, write_zip])
def test_documents_of_an_archive(monkeypatch, source, write_archive):
    monkeypatch.setattr(release, "download", lambda name, version, directory, final: write_archive(directory))
    documents = list(source.read())
    kept = [d for d in documents if d is not None]
    assert [d.name for d in kept] == sorted(
        name.removeprefix("Tiny-1.0/") for name in FILES if not name.endswith(".mo")
    )
    assert all(d.text.decode().strip() == d.domain for d in kept)
    assert len(documents) - len(kept) == 1
    assert source.sha256() == hashlib.sha256(source.archive.path().read_bytes()).hexdigest() == source.fingerprint()


def test_fetched_once(monkeypatch, source):
    fetched = []
    monkeypatch.setattr(release, "download", lambda *args: (fetched.append(args[:2]), write_tar(args[2])))
    list(source.read())
    list(source.read())
    assert fetched == [("Tiny", "1.0")]


def test_an_archive_put_there_by_hand_is_used(source):
    source.archive.directory.mkdir(parents=True)
    write_tar(source.archive.directory)
    assert len(list(source.read())) == 8


def test_pip_is_asked_for_the_source_of_this_package_alone(monkeypatch, source):
    commands = []

    def run(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, 1, "", "noise\nERROR: No matching distribution\nsee more\n")

    monkeypatch.setattr(release.subprocess, "run", run)
    with pytest.raises(ValueError, match=r"'pypi:Tiny==1\.0': .*\(ERROR: No matching distribution\): check") as error:
        list(source.read())
    assert "\n" not in str(error.value)
    assert str(source.archive.directory) in str(error.value)
    assert not source.archive.directory.exists()
    assert {"--no-deps", "--no-binary=Tiny", "Tiny==1.0"} <= set(commands[0])


@pytest.mark.parametrize(
    "damage", ["empty folder", "no archive", "cut", "flipped", "two files", "a file", "no digests"]
)
def test_a_damaged_archive_is_set_aside_and_fetched_again(monkeypatch, source, caplog, damage):
    fetched = []
    monkeypatch.setattr(release, "download", lambda *args: (fetched.append(args), write_tar(args[2])))
    directory, expected = source.archive.directory, list(source.read())
    archive = directory / "tiny-1.0.tar.gz"
    content = archive.read_bytes()
    if damage in ("empty folder", "no archive", "two files"):
        (directory / "digests.json").unlink()
    if damage == "empty folder":
        archive.unlink()
    elif damage == "no archive":
        archive.write_text("<html>not found</html>")
    elif damage == "cut":
        archive.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        archive.write_bytes(content[:60] + bytes([content[60] ^ 1]) + content[61:])
    elif damage == "two files":
        (directory / "other.zip").write_bytes(b"")
    elif damage == "a file":
        shutil.rmtree(directory)
        directory.write_bytes(content)
    else:
        (directory / "digests.json").write_text("{}")
    assert list(source.read()) == expected
    assert len(fetched) == 2
    assert list(source.read()) == expected
    assert len(fetched) == 2
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert re.search(r"'pypi:Tiny==1\.0': the archive is damaged \(.*\): it is fetched again", warning)
    assert directory.with_name("tiny-1.0.damaged.1").exists()


@pytest.mark.slow
def test_django(tmp_path):
    source = parse_sources(DataConfig(source="pypi:Django==5.1.4", cache_dir=str(tmp_path)))[0]
    documents = [d for d in source.read() if d is not None]
    assert source.sha256() == "de450c09e91879fa5a307f696e57c851955c910a438a35e6b4c895e86bedc82a"
    assert {d.domain for d in documents} == {"english", "code", "tests", "translations", "other"}
    assert {d.name: d.domain for d in documents}["docs/topics/db/queries.txt"] == "english"
