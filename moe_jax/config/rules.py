"""The rules that checks are made of, and how a broken one reads: field, value, remedy."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from moe_jax.config.schema import RunConfig


class ConfigError(ValueError):
    """What a user asked for cannot run; its text is one line that names field, value and remedy."""


class MachineError(Exception):
    """The machine failed (a full disk, a missing permission, no memory), not the input; its text is one line."""


class DivergedError(Exception):
    """Training has left the finite numbers for good; its text is one line that says where."""


def directory(name: str, value: str) -> Path:
    """The directory that a field or flag names, "~" expanded. Raises ConfigError for what can be none here."""
    if not value.strip():
        raise ConfigError(f"{name}={value!r} names no directory: give a path")
    if value.startswith("--"):
        raise ConfigError(f"{name}={value!r} is a flag: give {name} a path of its own, as in {name}=runs/first")
    scheme, separator, _ = value.partition("://")
    if separator:
        raise ConfigError(f"{name}={value!r} is no path of this machine: mount {scheme} and give its path here")
    if "\0" in value:
        raise ConfigError(f"{name}={value!r} has a NUL character, which no path has: leave it out")
    try:
        return Path(value).expanduser()
    except RuntimeError:  # no such user, or none at all: a container's random one
        raise ConfigError(
            f"{name}={value!r} begins at a home directory that is not known here: write the path out, or set HOME"
        ) from None


def positive(name: str, value: int | float) -> None:
    """Raises unless value > 0."""
    if not value > 0:
        raise ConfigError(
            f"{name}={value} must be positive: give {'at least 1' if isinstance(value, int) else 'more than 0'}"
        )


def divides(divisor_name: str, divisor: int, name: str, value: int) -> None:
    """Raises unless `value` is a multiple of `divisor`; names the multiples next to it."""
    if value % divisor:
        near = [n for n in (value // divisor * divisor, (value // divisor + 1) * divisor) if n > 0]
        raise ConfigError(
            f"{name}={value} is not a multiple of {divisor_name}={divisor}: use {name}={' or '.join(map(str, near))}, "
            f"or change {divisor_name}"
        )


def one_of(name: str, value: str, known: Iterable[str]) -> None:
    """Raises unless `value` is one of `known`, which the message lists."""
    if value not in known:
        listed = ", ".join(one or "''" for one in known)
        raise ConfigError(f"{name}={value!r} is unknown: choose one of {listed}")


def not_negative(name: str, value: int | float) -> None:
    """Raises unless value >= 0."""
    if not value >= 0:
        raise ConfigError(f"{name}={value} is negative: give 0 or more")


def between(name: str, value: int | float, low: int | float, high: int | float) -> None:
    """Raises unless low <= value <= high."""
    if not low <= value <= high:
        raise ConfigError(f"{name}={value} is outside [{low}, {high}]: choose a value inside")


def below_one(name: str, value: float) -> None:
    """Raises unless 0 <= value < 1."""
    if not 0 <= value < 1:
        raise ConfigError(f"{name}={value} is outside [0, 1): choose a value inside")


def each(run: RunConfig, names: str, rule: Callable[[str, int | float], None]) -> None:
    """Applies `rule` to every field of `names`, which are dotted and stand between spaces."""
    for name in names.split():
        section, field = name.split(".")
        rule(name, getattr(getattr(run, section), field))


def not_blank(name: str, words: Sequence[str]) -> None:
    """Raises ConfigError for an entry without a letter."""
    for i, word in enumerate(words):
        if not word.strip():
            raise ConfigError(f"{name}[{i}]={word!r} is empty: leave it out")
