"""Prompts from a file of JSON lines, and answers into one."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from moe_jax.config.rules import ConfigError
from moe_jax.inference.engine import Answer, Request
from moe_jax.inference.sampling import GREEDY
from moe_jax.inference.text import Text, check_writable

OWN: dict[str, Any] = {
    "prompt": str,
    "ids": list,
    "max_tokens": int,
    "stop": list,
    "ignore_stop": bool,
    "name": (str, int),
}
DRAWN = {name: (int, float) if isinstance(value, float) else int for name, value in vars(GREEDY).items()}


class Refused(NamedTuple):
    """A line that cannot be answered, and why."""

    line: int
    reason: str


def read(path: Path, text: Text, defaults: Request) -> Iterator[Request | Refused]:
    """A request for each line {"prompt": text} or {"ids": [numbers]}, whose other fields take the place of `defaults`:
    max_tokens, stop, ignore_stop, name, and those of `Sampling`.

    Lines without a seed have the default's and those after it. Raises ConfigError where there is no such file.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(f"--prompts={path} cannot be read ({error.strerror}): give a file of JSON lines") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fields = _fields(line)
            sampling = dataclasses.replace(defaults.sampling, seed=(defaults.sampling.seed + number - 1) % 2**32)
            drawn: dict[str, Any] = {name: _number(name, fields.pop(name)) for name in DRAWN if name in fields}
            sampling = dataclasses.replace(sampling, **drawn)
            sampling.check("")
            yield dataclasses.replace(defaults, **_own(fields, text), sampling=sampling, line=number)
        except ConfigError as error:
            yield Refused(number, str(error))


def _fields(line: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"it is no JSON ({error}): correct it") from None
    if not isinstance(fields, dict):
        raise ConfigError('it is no object: write {"prompt": "..."}')
    check_writable("it", json.dumps(fields, ensure_ascii=False))
    known = OWN | DRAWN
    for name, value in fields.items():
        if name not in known:
            raise ConfigError(f"{name!r} is no field of a prompt: use {', '.join(known)}")
        if not isinstance(value, known[name]) or (isinstance(value, bool) and known[name] is not bool):
            raise ConfigError(f"{name}={value!r} is of another type: correct it")
    if ("prompt" in fields) == ("ids" in fields):
        raise ConfigError("give one of prompt and ids")
    return fields


def _number(name: str, value: int | float) -> int | float:
    """In the type of the field."""
    try:
        return type(getattr(GREEDY, name))(value)
    except OverflowError:
        raise ConfigError(f"{name} is too large a number: correct it") from None


def _own(fields: Mapping[str, Any], text: Text) -> dict[str, Any]:
    own = dict(fields)
    stop, ids, prompt = own.get("stop", []), own.pop("ids", None), own.pop("prompt", None)
    if not all(isinstance(one, str) and one for one in stop):
        raise ConfigError(f"stop={stop!r}: give texts")
    if ids is not None and not all(type(one) is int for one in ids):
        raise ConfigError("ids: give whole numbers")
    own["prompt"] = tuple(ids) if ids is not None else tuple(text.encode(prompt))
    return own | ({"stop": tuple(stop)} if stop else {})


def as_line(answer: Answer, text: Text, log_probabilities: bool) -> str:
    """An answer as a JSON line."""
    request = answer.request
    fields: dict[str, Any] = {} if request.name is None else {"name": request.name}
    fields |= {
        "prompt": text.decode(request.prompt),
        "text": answer.text,
        "tokens": answer.tokens,
        "finish": answer.finish,
        "seed": request.sampling.seed,
    }
    if log_probabilities:
        fields["log_probabilities"] = [round(one, 6) for one in answer.log_probabilities]
    return json.dumps(fields, ensure_ascii=False)
