"""A damaged cache is noticed when it is opened, said so in one line, and built again."""

import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from moe_jax.config.rules import ConfigError, MachineError
from moe_jax.data import cache
from moe_jax.data.corpus import load_corpus
from moe_jax.data.pipeline import train_iterator
from moe_jax.data.shards import ShardWriter
from moe_jax.data.sources.text import TextFiles
from moe_jax.files.lock import locked


def flip(position):
    def damage(path):
        data = bytearray(path.read_bytes())
        if data:
            data[int(position * (len(data) - 1))] ^= 1
        path.write_bytes(data or b"x")

    return damage


def cut(path):
    path.write_bytes(path.read_bytes()[:-1] if path.stat().st_size else b"x")


def replace_by_folder(path):
    path.unlink()
    path.mkdir()


def replace_by_link(path):
    path.unlink()
    path.symlink_to(path.parent / "nowhere")


def empty(path):
    path.write_bytes(b"" if path.stat().st_size else b"x")


def forget(path):
    """The digests no longer name any file, and the file is other than it was."""
    flip(0.5)(path)
    (path.parent / "digests.json").write_text("{}")


def hide(path):
    """The digests no longer name the file, which is gone."""
    digests = path.parent / "digests.json"
    path.unlink()
    if path != digests:
        named = json.loads(digests.read_text())
        digests.write_text(json.dumps({name: digest for name, digest in named.items() if name != path.name}))


DAMAGES = {
    "first byte": flip(0),
    "middle byte": flip(0.5),
    "last byte": flip(1),
    "cut": cut,
    "empty": empty,
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "deleted": Path.unlink,
    "folder": replace_by_folder,
    "link": replace_by_link,
    "null": lambda path: path.write_bytes(bytes(path.stat().st_size + 1)),
    "forgotten": forget,
    "hidden": hide,
}
FILES = ("tokenizer.json", "corpus.json", "byte_counts.npz", "digests.json", "train_0.tokens.00000", "train_0.starts")
FILES += ("train_0.domains", "heldout_0.tokens.00000", "heldout_1.starts", "heldout_1.domains")


@pytest.fixture
def config(letters, make_config):
    return make_config(f"text:{letters}", tokenizer="bpe", holdout_fraction=0.2)


def entry(config, kind="corpora"):
    (found,) = (path for path in Path(config.cache_dir, kind).iterdir() if not path.name.startswith("."))
    return found


def facts(corpus, config):
    """Everything that a run sees of a corpus."""
    batches = [array for batch in itertools.islice(train_iterator(corpus, config, 0), 5) for array in batch]
    counted = corpus.byte_counts
    texts = corpus.sha256, str(corpus.counts), corpus.tokenizer.vocab_size, corpus.tokenizer.decode(batches[0][0])
    return texts, [array.tolist() for array in (*batches, counted.train, counted.heldout, counted.heldout_gzip)]


def damaged_then_loaded(config, caplog, damage, path):
    expected = facts(load_corpus(config, 300, seed=0), config)
    damage(path(config))
    caplog.clear()
    assert facts(load_corpus(config, 300, seed=0), config) == expected
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    caplog.clear()
    load_corpus(config, 300, seed=0)
    assert not caplog.records, "mended"
    return warnings


def check_repair(config, caplog, damage, name, kind="corpora"):
    def apply(path):
        DAMAGES[damage](path)
        if kind == "bpe":  # which is only opened where the corpus is built
            shutil.rmtree(entry(config))

    warnings = damaged_then_loaded(config, caplog, apply, lambda config: entry(config, kind) / name)
    assert len(warnings) == 1
    assert "is damaged (" in warnings[0] and "): it is built again" in warnings[0] and "\n" not in warnings[0]


FAST = [
    ("middle byte", "train_0.tokens.00000"),
    ("empty", "tokenizer.json"),
    ("cut", "corpus.json"),
    ("deleted", "byte_counts.npz"),
    ("folder", "heldout_1.starts"),
    ("forgotten", "train_0.tokens.00000"),
    ("hidden", "train_0.domains"),
    ("null", "digests.json"),
    ("deleted", "digests.json"),
]


@pytest.mark.parametrize(("damage", "name"), FAST)
def test_a_damaged_corpus_is_built_again(config, caplog, damage, name):
    check_repair(config, caplog, damage, name)


@pytest.mark.soak
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_of_every_file(config, caplog, damage, name):
    check_repair(config, caplog, damage, name)


@pytest.mark.parametrize("damage", ["middle byte", "empty", "deleted"])
def test_a_damaged_bpe_is_trained_again(config, caplog, damage):
    check_repair(config, caplog, damage, "tokenizer.json", "bpe")


@pytest.mark.soak
@pytest.mark.parametrize("name", ["tokenizer.json", "digests.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_of_the_bpe(config, caplog, damage, name):
    check_repair(config, caplog, damage, name, "bpe")


@pytest.mark.parametrize("whole", ["file", "empty folder", "link", "extra"])
def test_an_entry_that_is_something_else(config, caplog, whole):
    def damage(path):
        if whole == "extra":
            (path / "train_0.tokens.00001").write_bytes(b"\1\0")
            return
        shutil.rmtree(path)
        if whole == "file":
            path.write_text("x")
        elif whole == "link":
            path.symlink_to(path.parent / "nowhere")
        else:
            path.mkdir()

    assert len(damaged_then_loaded(config, caplog, damage, entry)) == 1


@pytest.mark.parametrize("step", ["shards", "index", "tokenizer", "digests"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line_and_leaves_nothing(config, monkeypatch, step, number):
    def full(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    place = {
        "shards": (ShardWriter, "finish"),
        "index": (Path, "open"),
        "tokenizer": (Path, "write_text"),
        "digests": (cache, "write_digests"),
    }[step]
    with monkeypatch.context() as patched:
        patched.setattr(*place, full)
        with pytest.raises(
            MachineError, match=rf"data\.cache_dir cannot be written .*{os.strerror(number)}\): make room"
        ) as error:
            load_corpus(config, 300, seed=0)
    assert "\n" not in str(error.value)
    left = [path for kind in Path(config.cache_dir).iterdir() for path in kind.iterdir() if path.suffix != ".lock"]
    assert all(path.parent.name == "bpe" and not path.name.startswith(".") for path in left)
    load_corpus(config, 300, seed=0)


@pytest.mark.parametrize("cache_dir", ["", "~nobody-of-this-name/x", "a\0b"])
def test_what_cannot_be_a_cache(letters, make_config, cache_dir):
    with pytest.raises(ConfigError, match=r"data\.cache_dir='.*: "):
        load_corpus(make_config(f"text:{letters}", cache_dir=cache_dir), 257, seed=0)


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 3000, "file/cache"])
def test_a_cache_that_cannot_be_made(letters, make_config, tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match=r"data\.cache_dir cannot be written"):
        load_corpus(make_config(f"text:{letters}", cache_dir=str(tmp_path / name)), 257, seed=0)


def test_a_source_that_changes_while_it_is_read(letters, config, monkeypatch):
    original, passes = TextFiles.read, itertools.count()

    def read(source):
        if next(passes) == 1:
            (letters / "low" / "03.txt").write_text("other")
        return original(source)

    monkeypatch.setattr(TextFiles, "read", read)
    with pytest.raises(MachineError, match=r"data\.source='text:.*' has changed while it was read: start again"):
        load_corpus(config, 300, seed=0)


def test_drafts_of_killed_builds_are_removed(config):
    folder = Path(config.cache_dir, "corpora")
    (folder / ".0123.abc.draft").mkdir(parents=True)
    (folder / ".4567.abc.draft").mkdir()
    with locked(folder / ".4567.lock"):  # that one is being built
        load_corpus(config, 300, seed=0)
    assert [path.name for path in folder.glob(".*.draft")] == [".4567.abc.draft"]


def test_others_wait_for_the_one_that_builds(config, monkeypatch):
    """A thread stands for another process: a lock is held by an open file."""
    monkeypatch.setattr(cache, "QUIET_SECONDS", 0.0)
    builds, building, waiting = [], threading.Event(), threading.Event()
    monkeypatch.setattr(cache.logging, "info", lambda message, *args: "Waiting" in message and waiting.set())
    original = TextFiles.read

    def read(source):
        builds.append(source)
        building.set()
        waiting.wait(timeout=20)
        return original(source)

    monkeypatch.setattr(TextFiles, "read", read)
    corpora = []
    first = threading.Thread(target=lambda: corpora.append(load_corpus(config, 300, seed=0)))
    first.start()
    assert building.wait(timeout=20)
    corpora.append(load_corpus(config, 300, seed=0))
    first.join()
    assert len(builds) == 3, "one of the two reads: for the index, for the BPE, for the tokens"
    assert corpora[0].sha256 == corpora[1].sha256
    assert waiting.is_set(), "and it said so"


def test_several_processes_start_at_once(config):
    program = (
        "import sys; from moe_jax.config.schema import DataConfig; from moe_jax.data.corpus import load_corpus\n"
        f"print(load_corpus(DataConfig(**{vars(config)}), 300, seed=0).sha256)"
    )
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-c", program]
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) for _ in range(3)]
    printed = {process.communicate()[0] for process in processes}
    assert printed == {f"{load_corpus(config, 300, seed=0).sha256}\n".encode()}
    assert not [*Path(config.cache_dir).rglob(".*.draft")]
