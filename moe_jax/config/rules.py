"""The rules that checks are made of, and how a broken one reads: field, value, remedy."""

from collections.abc import Iterable


class Violation(Exception):
    """One broken condition; its text is the whole message."""


class ConfigError(ValueError):
    """What a user asked for cannot run; its text is one line that names field, value and remedy."""


def positive(name: str, value: int | float) -> None:
    """Raises unless value > 0."""
    if not value > 0:
        raise Violation(
            f"{name}={value} must be positive: give {'at least 1' if isinstance(value, int) else 'more than 0'}"
        )


def divides(divisor_name: str, divisor: int, name: str, value: int) -> None:
    """Raises unless `value` is a multiple of `divisor`; names the multiples next to it."""
    if value % divisor:
        near = [n for n in (value // divisor * divisor, (value // divisor + 1) * divisor) if n > 0]
        raise Violation(
            f"{name}={value} is not a multiple of {divisor_name}={divisor}: use {name}={' or '.join(map(str, near))}, "
            f"or change {divisor_name}"
        )


def one_of(name: str, value: str, known: Iterable[str]) -> None:
    """Raises unless `value` is one of `known`, which the message lists."""
    if value not in known:
        raise Violation(f"{name}={value!r} is unknown: choose one of {', '.join(known)}")
