"""Evaluation of a finished or interrupted run, beside two baselines that know no model."""

from pathlib import Path

from absl import logging

from moe_jax.config.schema import RunConfig
from moe_jax.data import Corpus, gzip_bits_per_byte, unigram_bits_per_byte
from moe_jax.journal import workdir
from moe_jax.resolve.resolve import ConfigError
from moe_jax.train.checkpoints import Checkpoints
from moe_jax.train.evaluation import Evaluation
from moe_jax.train.setup import set_up


def evaluate_checkpoint(run: RunConfig, directory: Path) -> None:
    """Evaluates the newest readable checkpoint of `directory` on all of its held-out text; writes eval.json.

    The mesh may differ from the one it was trained on. Raises ConfigError where there is no checkpoint of this run.
    """
    workdir.check_identity(directory, run)
    setup = set_up(run)
    workdir.check_data(directory, setup.corpus.sha256)
    with Checkpoints(directory) as checkpoints:
        state = checkpoints.restore(setup.abstract)
    if state is None:
        raise ConfigError(
            f"--workdir={directory} has no checkpoint yet: train until checkpoint.every={run.checkpoint.every}"
        )
    step = int(state.step)
    logging.info("Evaluating step %d on all held-out text", step)
    evaluation = setup.evaluate(setup.compile_eval_step(), state.variables, batches=0)
    baselines = {"unigram": unigram_bits_per_byte(setup.corpus), "gzip": gzip_bits_per_byte(setup.corpus)}
    workdir.write_json(
        directory / "eval.json",
        {
            "step": step,
            **evaluation.as_dict(),
            "baselines_bits_per_byte": baselines,
            "data_sha256": setup.corpus.sha256,
        },
    )
    print(table(evaluation, setup.corpus))


def table(evaluation: Evaluation, corpus: Corpus) -> str:
    """Bits per byte of the model, of a byte unigram fitted to the training text, and of gzip, by domain."""
    lines = [f"{'bits per byte':>16}{'model':>9}{'unigram':>9}{'gzip -9':>9}{'bytes':>12}"]
    rows = [("all", evaluation.bits_per_byte, None)]
    rows += [(name, bits, name) for name, bits in evaluation.bits_per_byte_by_domain.items()]
    for name, bits, domain in rows:
        text = corpus.counts.heldout_bytes
        size = sum(text.values()) if domain is None else text[domain]
        baselines = unigram_bits_per_byte(corpus, domain), gzip_bits_per_byte(corpus, domain)
        lines.append(f"{name:>16}{bits:>9.3f}{baselines[0]:>9.3f}{baselines[1]:>9.3f}{size:>12,}")
    return "\n".join(lines)
