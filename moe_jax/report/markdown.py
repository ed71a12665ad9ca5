"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def rows(header: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table; a bar or a line break inside a cell is kept from ending it."""
    return [_row(header), "|" + "---|" * len(header), *(_row(cells) for cells in body)]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"
