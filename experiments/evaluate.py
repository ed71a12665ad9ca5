"""Evaluates the newest checkpoint of a run on all of its held-out text, by domain; writes WORKDIR/eval.json.

    python experiments/evaluate.py --config=configs/quickstart.py --workdir=runs/quickstart

With --tasks it answers questions of multiple choice by likelihood, and writes WORKDIR/tasks.json; --from_hf=FOLDER in
place of --workdir takes the model from there:

    python experiments/evaluate.py --workdir=runs/quickstart --tasks=questions.jsonl
"""

from pathlib import Path

from absl import flags

from moe_jax import cli
from moe_jax.config.rules import ConfigError, directory
from moe_jax.inference.multiple_choice import evaluate, read, table
from moe_jax.inference.source import from_hf, from_workdir
from moe_jax.inference.steps import Steps
from moe_jax.journal.workdir import write_json
from moe_jax.train.evaluate_checkpoint import evaluate_checkpoint

TASKS = flags.DEFINE_list("tasks", [], 'Files of JSON lines {"context": ..., "choices": [...], "answer": 0}.')
FROM = flags.DEFINE_string("from_hf", None, "With --tasks: Hugging Face folder, in place of --workdir.")
LENGTH = flags.DEFINE_integer("length", 1024, "With --tasks: tokens of a question and a choice.", lower_bound=2)
DTYPE = flags.DEFINE_string("dtype", "", "With --tasks: float32, bfloat16 or float64; default: the run's, or float32.")
WEIGHTS = flags.DEFINE_string("weights", "", "With --tasks: int8.")
MESH = flags.DEFINE_string("mesh", "", "With --tasks: sizes of mesh axes, as expert=4. Default: one device.")


def main() -> None:
    """Evaluates on held-out data, or on tasks."""
    given = flags.FLAGS
    if not TASKS.value:
        if given["tasks"].present:
            raise ConfigError("--tasks= names no file: give one of JSON lines")
        cli.refuse_flags("from_hf length dtype weights mesh", "is for --tasks")
        for name in ("config", "workdir"):
            if given[name].value is None:
                raise ConfigError(f"--{name} is missing: give it ({given[name].help})")
        return evaluate_checkpoint(cli.run_config(), cli.workdir())
    if (FROM.value is None) == (given.workdir is None):
        raise ConfigError("--tasks: give one of --workdir=DIR and --from_hf=FOLDER")
    names = [Path(name).stem for name in TASKS.value]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"--tasks names two files {twice[0]!r}, whose results would have one name: rename one")
    questions = {name: read(Path(path).expanduser()) for name, path in zip(names, TASKS.value, strict=True)}
    sizes = cli.sizes("--mesh", MESH.value)
    if FROM.value is not None:
        found = from_hf(directory("--from_hf", FROM.value), sizes, DTYPE.value, WEIGHTS.value)
    else:
        found = from_workdir(cli.workdir(), sizes, DTYPE.value, WEIGHTS.value)
    steps = Steps(found.run, found.mesh, found.weights)
    measured = {name: evaluate(steps, found.text, of, LENGTH.value) for name, of in questions.items()}
    print("\n".join(table(measured)))
    if given.workdir is not None:
        write_json(cli.workdir() / "tasks.json", {name: one._asdict() for name, one in measured.items()})


if __name__ == "__main__":
    cli.define_run_flags(required=False)
    cli.main(main)
