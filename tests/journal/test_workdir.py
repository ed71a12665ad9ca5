import dataclasses
import errno
import json
import os
import shutil

import pytest

from moe_jax.config.rules import ConfigError, MachineError
from moe_jax.journal import workdir

OTHER_IDENTITY = {
    "seed": 1,
    "model.d_ff": 64,
    "model.init_scale": 0.5,
    "moe.num_experts": 2,
    "moe.capacity_factor": 2.0,
    "data.batch_size": 16,
    "data.weights": (2.0,),
    "train.learning_rate": 0.5,
    "train.optimizer": "adafactor",
    "train.accumulate": 2,
}

ALLOWED = {
    "train.steps": 1000,
    "train.profile": (1, 2),
    "train.max_skipped": 3,
    "log.every": 7,
    "eval.every": 7,
    "eval.batches": 1,
    "checkpoint.every": 7,
    "checkpoint.keep": 7,
    "model.remat": "full",
    "model.loss_chunk": 8,
    "attention.chunk": 8,
    "log.expert_loads": True,
    "moe.dispatcher": "einsum",
    "moe.exchange": "all_to_all",
    "moe.exchange_chunks": 2,
    "moe.grouped_matmul": "padded",
    "moe.eval_capacity_factor": 3.0,
    "data.cache_dir": "/elsewhere",
    "data.workers": 3,
}


def content(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def claimed(make_run, tmp_path):
    """A work directory of the tiny run, with some results."""
    directory = tmp_path / "run"
    directory.mkdir()
    workdir.prepare(directory, make_run())
    workdir.claim(directory, make_run(), "some text")
    (directory / "metrics.jsonl").write_text('{"step": 1}\n')
    return directory


def test_preparing_writes_nothing(make_run, tmp_path):
    (tmp_path / "a").mkdir()
    workdir.prepare(tmp_path / "a", make_run(), others=("profile",))
    assert content(tmp_path / "a") == {}


def test_folders_are_tried_by_the_first_process_alone(make_run, tmp_path, monkeypatch):
    """Two that made and removed the same folder were in each other's way."""
    tried = []
    monkeypatch.setattr(workdir, "make_writable", tried.append)
    (tmp_path / "checkpoints").mkdir()
    workdir.prepare(tmp_path, make_run(), first_process=False)
    assert tried == []


def test_the_same_run_is_welcome(make_run, claimed):
    before = content(claimed)
    workdir.prepare(claimed, make_run())
    workdir.claim(claimed, make_run(), "some text")
    assert content(claimed) == before
    written = json.loads(before["config.json"])
    assert (written["moe.num_experts"], written["format"]) == (4, workdir.FORMAT)


@pytest.mark.parametrize("field", OTHER_IDENTITY)
def test_another_run_is_refused(make_run, claimed, field):
    before = content(claimed)
    with pytest.raises(ConfigError) as error:
        workdir.prepare(claimed, make_run({field: OTHER_IDENTITY[field]}))
    value = OTHER_IDENTITY[field]
    shown = list(value) if isinstance(value, tuple) else value
    assert f"{field} was " in str(error.value) and f", is {shown!r})" in str(error.value)
    assert str(error.value).count(" was ") == 1
    assert content(claimed) == before


def test_every_differing_field_is_named(make_run, claimed):
    before = content(claimed)
    with pytest.raises(ConfigError) as error:
        workdir.prepare(claimed, make_run(OTHER_IDENTITY | ALLOWED))
    assert [field for field in OTHER_IDENTITY if f"{field} was " not in str(error.value)] == []
    assert str(error.value).count(" was ") == len(OTHER_IDENTITY)
    assert "\n" not in str(error.value)
    assert content(claimed) == before


@pytest.mark.parametrize("field", ALLOWED)
def test_what_does_not_change_the_training_may_change(make_run, claimed, field):
    run = make_run({field: ALLOWED[field]})
    workdir.prepare(claimed, run)
    workdir.claim(claimed, run, "some text")
    written = json.loads((claimed / "config.json").read_text())[field]
    assert (tuple(written) if isinstance(written, list) else written) == ALLOWED[field]


def test_the_mesh_may_change(make_run, claimed):
    workdir.prepare(claimed, make_run({"mesh.data": 2, "mesh.expert": 4}, devices=8))


def test_a_file_of_an_older_version(make_run, claimed):
    config = json.loads((claimed / "config.json").read_text())
    del config["moe.z_loss"]
    (claimed / "config.json").write_text(json.dumps(config))
    workdir.prepare(claimed, make_run())  # the default is what the code did before there was the field
    with pytest.raises(ConfigError, match=r"\(moe.z_loss was 0.0, is 0.5\)"):
        workdir.prepare(claimed, make_run({"moe.z_loss": 0.5}))


@pytest.mark.parametrize(
    ("written", "release"), [(None, "an older"), (1, "an older"), ("x", "an older"), (9, "a newer")]
)
def test_a_directory_of_another_release_is_refused_before_its_fields_are_looked_at(make_run, claimed, written, release):
    config = json.loads((claimed / "config.json").read_text()) | {"format": written, "seed": 5}
    if written is None:  # as before there were formats
        del config["format"]
    (claimed / "config.json").write_text(json.dumps(config))
    before = content(claimed)
    line = (
        f"--workdir={claimed} was written by {release} release of moe_jax (format {written or 1}, now "
        f"{workdir.FORMAT}), whose checkpoints have other parameter names: choose another directory, or finish the run "
        "with that release"
    )
    for check in (workdir.prepare, workdir.check_identity):
        with pytest.raises(ConfigError) as error:
            check(claimed, make_run())
        assert str(error.value) == line
    assert content(claimed) == before


TORN = {
    "empty": b"",
    "cut": b'{"seed": 0, "mod',
    "list": b"[]",
    "null": b"null",
    "binary": b"\xff\xfe",
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("torn", TORN.values(), ids=TORN)
def test_a_torn_config_is_one_line(make_run, claimed, torn):
    (claimed / "config.json").write_bytes(torn)
    before = content(claimed)
    with pytest.raises(ConfigError, match=r"^--workdir=.*config.json .*choose another directory$"):
        workdir.prepare(claimed, make_run())
    assert content(claimed) == before


@pytest.mark.parametrize("path", ["file", "file/below", "file/far/below"])
def test_a_path_that_cannot_be_a_directory(make_run, tmp_path, path):
    (tmp_path / "file").write_text("text")
    with pytest.raises(ConfigError, match=rf"^--workdir=.*{path} cannot be written \(.+\): choose another directory$"):
        workdir.make_writable(tmp_path / path)
    assert content(tmp_path) == {"file": b"text"}


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard", "tensorboard/hparams", "profile"])
def test_a_folder_of_the_run_that_cannot_be_made_is_found_before_the_first_step(make_run, claimed, name):
    """A file stands for whatever cannot be a folder to write to: a read-only mount, say."""
    (claimed / name).parent.mkdir(exist_ok=True)
    (claimed / name).write_text("no folder")
    with pytest.raises(ConfigError, match=rf"^--workdir=.*{name} cannot be written \(.+\): choose another directory$"):
        workdir.prepare(claimed, make_run(), others=("profile",))


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "summary.json"])
def test_a_file_of_the_run_that_cannot_be_written(make_run, claimed, name):
    (claimed / name).unlink(missing_ok=True)
    (claimed / name).mkdir()
    with pytest.raises(ConfigError, match=rf"^--workdir=.*{name} (cannot be|holds no)"):
        workdir.prepare(claimed, make_run())


def test_one_run_at_a_time_and_readers_are_welcome(make_run, claimed):
    with workdir.own(claimed):
        with (
            pytest.raises(ConfigError, match=rf"another run trains here \(process {os.getpid()} on .+\): wait for"),
            workdir.own(claimed),
        ):
            pass
        workdir.check_identity(claimed, make_run())
        with workdir.own(claimed, first_process=False):  # another process of the same run
            pass
    with workdir.own(claimed):
        pass


def test_a_lock_that_is_no_file(claimed):
    (claimed / "train.lock").mkdir()
    with (
        pytest.raises(ConfigError, match=r"train.lock cannot be locked \(Is a directory\): remove it"),
        workdir.own(claimed),
    ):
        pass


def test_a_lock_whose_holder_is_unknown_and_a_full_disk(claimed, monkeypatch):
    for error, expected, said in (
        (BlockingIOError(), ConfigError, r"another run trains here \(an unknown process\): wait"),
        (OSError(errno.ENOSPC, "No space left"), MachineError, r"has no room left \(No space left\): make room"),
    ):

        def locked(path, wait, error=error):
            raise error

        monkeypatch.setattr(workdir, "locked", locked)
        with pytest.raises(expected, match=said), workdir.own(claimed):
            pass


def test_a_file_that_finds_no_room_leaves_nothing_and_is_named(tmp_path, monkeypatch):
    def write_text(path, text):
        path.write_bytes(text[:3].encode())
        raise OSError(errno.ENOSPC, "No space left")

    workdir.write_json(tmp_path / "eval.json", {"a": 1})
    monkeypatch.setattr(type(tmp_path), "write_text", write_text)
    with pytest.raises(OSError, match=r"eval\.json"):
        workdir.write_json(tmp_path / "eval.json", {"a": 2})
    assert json.loads((tmp_path / "eval.json").read_bytes()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [tmp_path / "eval.json"]


@pytest.mark.parametrize("change", ["renamed", "deleted", "replaced"])
def test_a_directory_that_is_taken_away_is_told(claimed, change):
    with workdir.own(claimed) as home:
        home.check()
        aside = claimed.rename(claimed.with_name("aside"))
        if change == "deleted":
            shutil.rmtree(aside)
        if change == "replaced":
            claimed.mkdir()
        with pytest.raises(MachineError, match=rf"^--workdir={claimed} is not the directory any more .+ put it back"):
            home.check()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_without_permission(make_run, tmp_path):
    tmp_path.chmod(0o500)
    for path in (tmp_path, tmp_path / "below"):
        with pytest.raises(ConfigError, match=r"cannot be written \(Permission denied\)"):
            workdir.make_writable(path)


def test_no_run_to_evaluate(make_run, tmp_path):
    with pytest.raises(ConfigError, match=r"holds no run \(config.json is missing\): train one there first"):
        workdir.check_identity(tmp_path, make_run())


def test_json_is_written_whole_and_valid(tmp_path):
    path = tmp_path / "summary.json"
    path.write_text("before")
    with pytest.raises(TypeError):
        workdir.write_json(path, {"a": 1, "b": object()})
    assert path.read_text() == "before"
    workdir.write_json(path, {"nan": float("nan"), "inner": {"inf": float("inf"), "one": 1.5}, "text": "NaN"})
    assert json.loads(path.read_text()) == {"nan": None, "inner": {"inf": None, "one": 1.5}, "text": "NaN"}
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_finished_is_what_the_summary_says(tmp_path):
    assert not workdir.is_finished(tmp_path, 6)
    workdir.write_summary(tmp_path, {"steps": 6})
    assert workdir.is_finished(tmp_path, 6)
    assert not workdir.is_finished(tmp_path, 8)


def test_these_fields_are_all_there_is(make_run):
    """A new field belongs to the identity unless it is listed: nothing slips through by omission."""
    run = make_run()
    rooms = {name: getattr(run, name) for name in ("model", "attention", "moe", "lora", "data", "train")}
    fields = {f"{room}.{field.name}" for room, part in rooms.items() for field in dataclasses.fields(part)}
    free = {name for name in ALLOWED if name.split(".")[0] in rooms} | {
        *("attention.kernel", "moe.temperature_steps", "moe.exchange_unique", "moe.exchange_nodes"),
    }
    assert set(workdir.identity(run)) == (fields | {"seed", "task"}) - free


def test_a_run_whose_text_has_changed_is_refused(tmp_path, make_run):
    workdir.claim(tmp_path, make_run(), "old text")
    workdir.check_data(tmp_path, "old text")
    with pytest.raises(ConfigError, match="data_sha256 was old text, is new text"):
        workdir.check_data(tmp_path, "new text")
