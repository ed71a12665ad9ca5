"""Any file of a work directory, damaged in any way: the run goes on to the same end, or says in one line why not."""

import json
import random
import shutil

import pytest

from moe_jax import cli
from moe_jax.config.rules import MachineError
from moe_jax.train.loop import train

pytestmark = pytest.mark.soak

CASES = 100
FIELDS = {"train.steps": 40, "checkpoint.every": 10, "log.every": 10, "eval.every": 20}


def flip(path, draw):
    content = bytearray(path.read_bytes())
    if content:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def replace_by_folder(path, draw):
    path.unlink()
    path.mkdir()


DAMAGES = {
    "empty": lambda path, draw: path.write_bytes(b""),
    "cut": lambda path, draw: path.write_bytes(path.read_bytes()[: draw.randrange(1 + path.stat().st_size)]),
    "flipped": flip,
    "zeros": lambda path, draw: path.write_bytes(bytes(path.stat().st_size)),
    "noise": lambda path, draw: path.write_bytes(draw.randbytes(path.stat().st_size)),
    "longer": lambda path, draw: path.write_bytes(path.read_bytes() + draw.randbytes(100)),
    "gone": lambda path, draw: path.unlink(),
    "a folder": replace_by_folder,
}


@pytest.fixture(scope="module")
def story(make_run, tmp_path_factory):
    """(the run, its directory after 40 steps, what 50 steps end with)."""
    root = tmp_path_factory.mktemp("damaged")
    assert train(make_run(FIELDS), root / "run") == 0
    shutil.copytree(root / "run", root / "longer")
    longer = make_run(FIELDS | {"train.steps": 50})
    assert train(longer, root / "longer") == 0
    return longer, root / "run", json.loads((root / "longer/summary.json").read_text())


def outcome(run, directory):
    """("", summary) of a run that goes on, or (the line, None)."""
    try:
        assert train(run, directory) == 0
    except (MachineError, ValueError) as error:
        assert isinstance(error, MachineError) or cli._raised_here(error), "an error of a library"
        return str(error), None
    return "", json.loads((directory / "summary.json").read_text())


def test_damage(story, tmp_path):
    run, whole, expected = story
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    draw = random.Random(0)
    cases = [(draw.choice(files), draw.choice(list(DAMAGES))) for _ in range(CASES)]
    cases += [(file, kind) for file in files if len(file.parts) == 1 for kind in DAMAGES]
    went_on, refused, failures = 0, [], []
    for number, (file, kind) in enumerate(cases):
        directory = tmp_path / str(number)
        shutil.copytree(whole, directory)
        DAMAGES[kind](directory / file, draw)
        try:
            line, summary = outcome(run, directory)
        except Exception as error:
            failures.append(f"{file} {kind}: {type(error).__name__}: {error}"[:500])
            continue
        finally:
            shutil.rmtree(directory)
        if line:
            refused.append(f"{file} {kind}: {line}")
            if "\n" in line or file.name not in ("config.json", "summary.json", "metrics.jsonl", "train.lock"):
                failures.append(refused[-1])
        else:
            went_on += 1
            if summary["eval_loss"] != expected["eval_loss"]:
                failures.append(f"{file} {kind}: ends at {summary['eval_loss']}, not {expected['eval_loss']}")
    print(f"{went_on} went on, {len(refused)} were refused:", *refused, sep="\n")
    assert not failures, "\n".join(failures)
