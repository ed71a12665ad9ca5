"""Texts for prompts, on the terminal and into a file."""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import logging

from moe_jax.config.rules import ConfigError
from moe_jax.inference.engine import Answer, Engine, Request
from moe_jax.inference.prompts import Refused, as_line

BAD_LINES = 2  # exit code where a line of the prompts could not be answered


def generate(
    engine: Engine, requests: Sequence[Request | Refused], output: Path | None, log_probabilities: bool = False
) -> int:
    """Answers the requests in the order of their being finished, and writes each to `output` then.

    A single one is shown while it grows. Returns the exit code: 2 where lines could not be answered, which are named
    while the others are.
    """
    good, refused = accepted(engine, requests)
    for line in refused:
        logging.warning("Line %d of the prompts is left out: %s", line.line, line.reason)
    if not good:
        raise ConfigError(f"no prompt can be answered: {refused[0].reason if refused else 'give some'}")
    stream = len(good) == 1
    with output.open("w", encoding="utf-8") if output else open("/dev/null", "w") as file:
        shown = ""
        for answer in engine.tokens(good):
            if stream:
                settled = answer.text if answer.finish else _settled(answer.text, answer.request.stop)
                sys.stdout.write(settled[len(shown) :])
                sys.stdout.flush()
                shown = settled if len(settled) > len(shown) else shown
            if answer.finish:
                file.write(as_line(answer, engine.text, log_probabilities) + "\n")
                file.flush()
                _show(answer, stream)
    if output is not None:
        logging.info("%d answers are in %s", len(good), output)
    return BAD_LINES if refused else 0


def accepted(engine: Engine, requests: Sequence[Request | Refused]) -> tuple[list[Request], list[Refused]]:
    """Those that the engine can answer, and the others with the reasons."""
    good: list[Request] = []
    refused = [one for one in requests if isinstance(one, Refused)]
    for one in requests:
        if isinstance(one, Request):
            try:
                engine.check(one)
                good.append(one)
            except ConfigError as error:
                refused.append(Refused(one.line, str(error)))
    return good, sorted(refused)


def _settled(text: str, stops: Sequence[str]) -> str:
    """The text without an end that may be the beginning of a stop."""
    held = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
    return text[: len(text) - max(held, default=0)]


def _show(answer: Answer, streamed: bool) -> None:
    request = answer.request
    name = "" if request.name is None else f" {request.name}"
    seconds = answer.times[-1] - answer.began
    end = "" if streamed else f"{answer.text}\n"
    print(
        f"{end}\n--{name} {len(request.prompt)} tokens, then {len(answer.tokens)} in {seconds:.2f} s ({answer.finish})"
    )
