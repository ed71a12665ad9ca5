"""Writes tables in Markdown."""

from collections.abc import Iterable, Sequence


def rows(header: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table; a bar or a line break inside a text does not end its column."""
    return [_row(header), "|" + "---|" * len(header), *(_row(texts) for texts in body)]


def _row(texts: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(text.split()).replace("|", "\\|") for text in texts) + " |"
