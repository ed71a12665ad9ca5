"""Tasks by likelihood: which of several continuations a model finds the likeliest."""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from moe_jax.config.rules import ConfigError
from moe_jax.inference.engine import bucket
from moe_jax.inference.sampling import GREEDY, Settings
from moe_jax.inference.steps import Steps, Turn, empty_caches
from moe_jax.inference.text import Text, check_writable
from moe_jax.report.markdown import rows


class Question(NamedTuple):
    """A context, and what may follow."""

    context: str
    choices: tuple[str, ...]
    answer: int  # the number of the right one


class Accuracy(NamedTuple):
    """Of the questions of a file."""

    questions: int
    accuracy: float  # by the sum of the log-probabilities of a choice's tokens
    standard_error: float
    normalised: float  # by that sum over the choice's UTF-8 bytes: long choices are not at a disadvantage
    normalised_standard_error: float
    by_chance: float  # what a blind guess gets


def read(path: Path) -> list[Question]:
    """The questions of a file of JSON lines {"context": text, "choices": [texts], "answer": number of the right one}.

    Raises ConfigError, which names the line, for what is none.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(f"--tasks={path} cannot be read ({error.strerror}): give a file of JSON lines") from None
    questions = [_question(f"--tasks={path}: line {at}", line) for at, line in enumerate(lines, 1) if line.strip()]
    if not questions:
        raise ConfigError(f"--tasks={path} has no questions: give lines with context, choices and answer")
    return questions


def _question(where: str, line: bytes) -> Question:
    try:
        fields: Any = json.loads(line)
        context, choices, answer = fields["context"], fields["choices"], fields["answer"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise ConfigError(
            f'{where} is no question ({error}): write {{"context": text, "choices": [texts], "answer": number}}'
        ) from None
    texts = isinstance(choices, list) and all(isinstance(one, str) and one for one in choices)
    if not isinstance(context, str) or not texts or len(choices) < 2:
        raise ConfigError(f"{where}: context has to be a text, and choices a list of two texts or more")
    check_writable(where, "".join((context, *choices)))
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise ConfigError(f"{where}: answer={answer!r} is none of the {len(choices)} choices, counted from 0")
    return Question(context, tuple(choices), answer)


def evaluate(steps: Steps, text: Text, questions: Sequence[Question], length: int) -> Accuracy:
    """How often the likeliest choice is the right one.

    A context and a choice are encoded together, and the tokens that the context alone does not have are the choice's.
    Raises ConfigError for a question that is longer than `length` tokens, or whose context has none.
    """
    sequences = []
    for number, one in enumerate(questions, 1):
        try:
            sequences += [_encoded(text, one.context, choice, length) for choice in one.choices]
        except ConfigError as error:
            raise ConfigError(f"--tasks: question {number}: {error}") from None
    found = log_likelihoods(steps, sequences)
    return accuracy(questions, [[next(found) for _ in one.choices] for one in questions])


def accuracy(questions: Sequence[Question], scores: Sequence[Sequence[float]]) -> Accuracy:
    """From the log-probability of each choice of each question."""
    right, right_by_bytes = [], []
    for one, own in zip(questions, scores, strict=True):
        sizes = np.array([len(choice.encode()) for choice in one.choices])
        right.append(int(np.argmax(own)) == one.answer)
        right_by_bytes.append(int(np.argmax(np.asarray(own) / sizes)) == one.answer)
    by_chance = float(np.mean([1 / len(one.choices) for one in questions]))
    return Accuracy(len(questions), *_mean(right), *_mean(right_by_bytes), by_chance)


def _encoded(text: Text, context: str, choice: str, length: int) -> tuple[list[int], int]:
    """The tokens of both, and how many of them are the context's."""
    alone, both = list(text.encode(context)), list(text.encode(context + choice))
    if len(both) > length:
        raise ConfigError(f"context and choice have {len(both)} tokens: raise --length, which is {length}")
    first = next((at for at, (a, b) in enumerate(zip(alone, both, strict=False)) if a != b), min(len(alone), len(both)))
    if not first:
        raise ConfigError(
            f"the context {context!r} has no token of its own before {choice!r}, which is then as likely as anything: "
            "begin it with some text"
        )
    return both, min(first, len(both) - 1)


def _mean(right: Sequence[bool]) -> tuple[float, float]:
    mean = float(np.mean(right))
    return mean, math.sqrt(mean * (1 - mean) / max(len(right) - 1, 1))


def log_likelihoods(steps: Steps, sequences: Sequence[tuple[Sequence[int], int]]) -> Iterator[float]:
    """For each (tokens, first) the sum of the log-probabilities of the tokens from `first` on, given those before."""
    run, mesh, shards = steps.run, steps.mesh, steps.shards
    settings = Settings.of([GREEDY] * shards)
    for begin in range(0, len(sequences), shards):
        batch = sequences[begin : begin + shards]
        ids = np.zeros((shards, bucket(max(len(tokens) for tokens, _ in batch))), np.int32)
        first, count = np.zeros((2, shards), np.int32)
        for row, (tokens, at) in enumerate(batch):
            ids[row, : len(tokens)], first[row], count[row] = tokens, at, len(tokens)
        caches = empty_caches(run, mesh, shards, ids.shape[1], ids.shape[1])
        turn = Turn(jnp.asarray(ids), jnp.zeros(shards, jnp.int32), jnp.asarray(count))
        _, outcome = steps.decode(caches, turn, settings, True, all_logits=True)
        sums = _sum(outcome.logits, turn.ids, jnp.asarray(first), turn.number)
        yield from map(float, sums[: len(batch)])


@jax.jit
def _sum(
    logits: Float[Array, "R L V"], ids: Int[Array, "R L"], first: Int[Array, "R"], count: Int[Array, "R"]
) -> Float[Array, "R"]:
    of_next = jax.nn.log_softmax(logits[:, :-1])
    chosen = jnp.take_along_axis(of_next, ids[:, 1:, None], axis=-1)[..., 0]
    at = jnp.arange(1, ids.shape[1])
    return jnp.sum(jnp.where((at >= first[:, None]) & (at < count[:, None]), chosen, 0), axis=-1)


def table(measured: dict[str, Accuracy]) -> list[str]:
    """The lines of a table with a row for each file."""
    body = [
        [
            name, f"{one.questions:,}", f"{one.accuracy:.1%} ± {one.standard_error:.1%}",
            f"{one.normalised:.1%} ± {one.normalised_standard_error:.1%}", f"{one.by_chance:.1%}",
        ]
        for name, one in measured.items()
    ]  # fmt: skip
    return rows(["task", "questions", "accuracy", "by bytes", "by chance"], body)
